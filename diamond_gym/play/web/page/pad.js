// Names of keys, and the touch pad. Also used by the page in docs/play_here, whose build copies this file.

const DIRECTIONS = { w: "\u25b2", a: "\u25c0", s: "\u25bc", d: "\u25b6" };
const DIAGONAL = Math.tan(Math.PI / 8);
const DEAD_PIXELS = 12;
const NAMES = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };

/** The name of an event's key, as games and shortcuts call it. */
export function nameOf({ key, code }) {
  if (key in NAMES) return NAMES[key];
  if (/^[\x20-\x7e]$/.test(key)) return key.toLowerCase();
  const letter = /^Key([A-Z])$/.exec(code); // for keyboards without Latin letters
  return letter && key.length === 1 ? letter[1].toLowerCase() : key.toLowerCase();
}

/** Whether a key presses the button that has the focus. */
export const isForButton = ({ key }) =>
  document.activeElement instanceof HTMLButtonElement && (key === "Enter" || key === " ");

/**
 * Fill the touch pad.
 *
 * rows: [key, action] of each key that does something alone; hold: called with a finger's id and the keys that it holds.
 */
export function fillPad(rows, cross, fire, hold) {
  const isNamed = rows.every(([key, action]) => !(key in DIRECTIONS) || !action.startsWith("ACTION_"));
  const directions = Object.keys(DIRECTIONS).filter((key) => isNamed && rows.some(([name]) => name === key));
  cross.classList.toggle("is-flat", !directions.includes("w") && !directions.includes("s"));
  cross.replaceChildren(...directions.map((key) => padKey(key, DIRECTIONS[key], "")));
  fire.replaceChildren(...rows.filter(([key]) => !directions.includes(key)).map(([key, action]) =>
    padKey(key, action || key.toUpperCase(), key === " " ? "is-round" : "")));
  followFingers(cross, hold, (event) => crossKeys(event, cross, directions));
  for (const element of fire.children) followFingers(element, hold, () => [element.dataset.key]);
}

function padKey(key, label, className) {
  const element = Object.assign(document.createElement("div"), { className: `key ${className}`, textContent: label });
  element.dataset.key = key;
  return element;
}

function followFingers(element, hold, keysAt) {
  const follow = (event) => hold(event.pointerId, keysAt(event));
  element.onpointerdown = (event) => {
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    follow(event);
  };
  element.onpointermove = (event) => { if (event.buttons) follow(event); };
  element.onpointerup = element.onpointercancel = (event) => hold(event.pointerId, []);
  element.oncontextmenu = (event) => event.preventDefault();
}

/** The keys, among those of the game, that a finger at a place on the cross holds. */
function crossKeys({ clientX, clientY }, cross, keys) {
  const { left, top, width, height } = cross.getBoundingClientRect();
  const [x, y] = [clientX - left - width / 2, clientY - top - height / 2];
  if (Math.hypot(x, y) < DEAD_PIXELS) return [];
  const hasVertical = keys.includes("w") || keys.includes("s");
  const hasHorizontal = keys.includes("a") || keys.includes("d");
  const wanted = [];
  if (!hasVertical || Math.abs(x) > DIAGONAL * Math.abs(y)) wanted.push(x < 0 ? "a" : "d");
  if (!hasHorizontal || Math.abs(y) > DIAGONAL * Math.abs(x)) wanted.push(y < 0 ? "w" : "s");
  return wanted.filter((key) => keys.includes(key));
}

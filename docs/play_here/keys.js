// Keys and fingers: which keys of the game are held, and which commands are given.

import { fillPad, isForButton, nameOf } from "./pad.js";

const SPELLINGS = { " ": "Space" };

/** Commands: keys, what they do, and the label and group of their button. */
const SHORTCUTS = [
  { command: "reset", keys: ["enter"], text: "a new game", label: "Reset", group: "Game" },
  { command: "again", keys: ["b"], text: "the same game from its beginning", label: "Again", group: "Game" },
  { command: "pause", keys: ["."], text: "pause", label: "Pause", group: "Game" },
  { command: "step", keys: ["e"], text: "one step while paused", label: "One step", group: "Game", repeats: true },
  { command: "controller", keys: ["m"], text: "agent / person", label: "Agent / person", group: "Game" },
  { command: "previous_world", keys: ["left"], text: "the world before", label: "Back a world", group: "Game" },
  { command: "next_world", keys: ["right"], text: "the next world", label: "Next world", group: "Game" },
  { command: "save", keys: ["s", "ctrl+s"], text: "save the state", label: "Save", group: "Game" },
  { command: "load", keys: ["l", "f9"], text: "return to the saved state", label: "Load", group: "Game" },
  { command: "shorter_horizon", keys: ["down"], text: "imagination horizon -1", label: "Horizon -", group: "Imagination", repeats: true },
  { command: "longer_horizon", keys: ["up"], text: "imagination horizon +1", label: "Horizon +", group: "Imagination", repeats: true },
  ...["1", "2", "3"].map((n) => (
    { command: `passes_${n}`, keys: [n], text: `denoising steps: ${n}`, label: n, group: "Denoising steps" })),
  { command: "share", keys: ["k"], text: "copy the address of this game, with its seed", label: "Share", group: "Screen" },
  { command: "screenshot", keys: ["p"], text: "screenshot (PNG)", label: "Screenshot", group: "Screen" },
  { command: "fullscreen", keys: ["f"], text: "fullscreen", label: "Fullscreen", group: "Screen" },
  { command: "help", keys: ["h", "f1"], text: "this help", label: "Help", group: "Screen" },
];

/** Return the shortcuts of a world, without keys that its game needs (S, where there is a DOWN). */
export function shortcutsOf({ actions }) {
  const taken = new Set(actions.flatMap(({ keys }) => keys));
  return SHORTCUTS.map((shortcut) => ({ ...shortcut, keys: shortcut.keys.filter((key) => !taken.has(key)) }));
}

/** Return the help: titles with rows of keys and what they do. */
export function helpOf({ actions }, shortcuts) {
  const spelt = (keys, joint) => keys.map(spell).join(joint);
  return [
    ["Game keys", actions.map(({ keys, name }) => [keys.length ? spelt(keys, " + ") : "no key", name])],
    ["Keys", shortcuts.map(({ keys, text }) => [spelt(keys, " or "), text])],
  ];
}

export const spell = (key) => SPELLINGS[key] ?? key.replace(/(^|\+)[a-z]/g, (text) => text.toUpperCase());

/** The keys that are held, by a physical key or a finger, or were tapped since the last picture. */
export class HeldKeys {
  constructor(shown) {
    this.sources = new Map();
    this.tapped = [];
    this.shown = shown;
  }

  hold(source, keys) {
    const before = this.held();
    if (keys.length) this.sources.set(source, keys);
    else this.sources.delete(source);
    this.tapped.push(...keys.filter((key) => !before.includes(key)));
    this.shown(this.held());
  }

  release() {
    this.sources.clear();
    this.tapped = [];
    this.shown([]);
  }

  held() {
    return [...new Set([...this.sources.values()].flat())];
  }

  /** Return the keys for the next step, in the order in which they were pressed, and forget taps. */
  take() {
    const keys = [...new Set([...this.tapped, ...this.held()])];
    this.tapped = [];
    return keys;
  }
}

/** Listen to the keyboard; world() gives {actions, shortcuts} or null, command(name) is called for shortcuts. */
export function listen(held, world, command) {
  addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || isForButton(event) || !world()) return;
    const name = nameOf(event);
    const key = event.ctrlKey ? `ctrl+${name}` : name;
    const shortcut = world().shortcuts.find(({ keys }) => keys.includes(key));
    const isGames = world().actions.some(({ keys }) => keys.includes(key));
    if (!shortcut && !isGames) return;
    event.preventDefault();
    if (shortcut && (!event.repeat || shortcut.repeats)) command(shortcut.command);
    if (isGames && !event.repeat) held.hold(event.code || key, [key]);
  });
  addEventListener("keyup", (event) => held.hold(event.code || nameOf(event), []));
  addEventListener("blur", () => held.release());
  document.addEventListener("visibilitychange", () => { if (document.hidden) held.release(); });
}

// --- the touch pad

/** Fill the touch pad with the keys of a world. */
export function buildPad({ actions }, held, cross, fire) {
  const alone = [...new Set(actions.flatMap(({ keys }) => keys))]
    .map((key) => [key, actions.find(({ keys }) => keys.length === 1 && keys[0] === key)?.name ?? ""]);
  fillPad(alone, cross, fire, (source, keys) => held.hold(source, keys));
}

// The touch pad's cross: which keys a finger holds. Also used by the page in docs/play_here, whose build copies this file.

const DIAGONAL = Math.tan(Math.PI / 8);
const DEAD_PIXELS = 12;

/** The keys, among those of the game, that a finger at a place on the cross holds. */
export function crossKeys({ clientX, clientY }, cross, keys) {
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

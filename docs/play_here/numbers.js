// The random numbers of a game: the same as in Python for the same seed. docs/onnx.md describes the algorithms,
// and gives the values that tests/play/test_play_here.py checks.

const MASK_32 = (1n << 32n) - 1n;
const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645n;

// --- a seed's context and key: NumPy's SeedSequence and PCG64

/** Return the first 32-bit words that numpy.random.SeedSequence(seed) generates; seed is a BigInt >= 0. */
export function seedWords(seed, count) {
  const entropy = [];
  for (let rest = seed; rest > 0n || !entropy.length; rest >>= 32n) entropy.push(Number(rest & MASK_32));
  let constant = 0x43B0D7E5;
  const hashed = (word) => {
    const value = word ^ constant;
    constant = Math.imul(constant, 0x931E8875);
    return folded(Math.imul(value, constant));
  };
  const mixed = (x, y) => folded(Math.imul(0xCA01F9DD, x) - Math.imul(0x4973F715, y));
  const pool = [0, 1, 2, 3].map((i) => hashed(entropy[i] ?? 0));
  for (let i = 0; i < 4; i++)
    for (let j = 0; j < 4; j++) if (i !== j) pool[j] = mixed(pool[j], hashed(pool[i]));
  for (const word of entropy.slice(4))
    for (let j = 0; j < 4; j++) pool[j] = mixed(pool[j], hashed(word));
  constant = 0x8B51F9DD;
  return Array.from({ length: count }, (_, i) => {
    const value = pool[i % 4] ^ constant;
    constant = Math.imul(constant, 0x58F38DED);
    return folded(Math.imul(value, constant)) >>> 0;
  });
}

function folded(value) {
  return value ^ (value >>> 16);
}

/** Return a function that gives the 64-bit numbers of numpy.random.PCG64(seed), as BigInts. */
function pcg64(seed) {
  const words = seedWords(seed, 8).map(BigInt);
  const [stateHigh, stateLow, incHigh, incLow] = [0, 2, 4, 6].map((i) => words[i] | (words[i + 1] << 32n));
  const increment = (((incHigh << 64n) | incLow) << 1n | 1n) & MASK_128;
  const advance = (state) => (state * PCG_MULTIPLIER + increment) & MASK_128;
  let state = advance((increment + ((stateHigh << 64n) | stateLow)) & MASK_128);
  return () => {
    state = advance(state);
    const value = (state >> 64n) ^ (state & MASK_64);
    const turn = state >> 122n;
    return ((value >> turn) | (value << (64n - turn))) & MASK_64;
  };
}

/** Return the index of a seed's context, and the key of its noise as a BigInt. */
export function contextAndKey(seed, numContexts) {
  const next = pcg64(seed);
  const index = numContexts > 1 ? boundedIndex(next, BigInt(numContexts)) : 0;
  return { index, key: next() >> 1n };
}

function boundedIndex(next, bound) {
  // Lemire's method on 32-bit numbers, which are the low and then the high half of a 64-bit one
  const halves = [];
  const nextHalf = () => {
    if (!halves.length) {
      const number = next();
      halves.push(number & MASK_32, number >> 32n);
    }
    return halves.shift();
  };
  let product = nextHalf() * bound;
  while ((product & MASK_32) < (1n << 32n) % bound) product = nextHalf() * bound;
  return Number(product >> 32n);
}

// --- noise: Philox4x32-10

/** Return four 32-bit words of each block; key is a BigInt below 2**63, step a number. */
export function philox(key, step, draw, numBlocks) {
  const words = new Uint32Array(4 * numBlocks);
  const keyLow = Number(key & MASK_32);
  const keyHigh = Number(key >> 32n);
  for (let block = 0; block < numBlocks; block++) {
    let [c0, c1, c2, c3, k0, k1] = [block, draw, step >>> 0, Math.floor(step / 2 ** 32), keyLow, keyHigh];
    for (let round = 0; round < 10; round++) {
      const high0 = highProduct(0xD2511F53, c0);
      const high2 = highProduct(0xCD9E8D57, c2);
      const [low0, low2] = [Math.imul(0xD2511F53, c0), Math.imul(0xCD9E8D57, c2)];
      c0 = high2 ^ c1 ^ k0;
      c2 = high0 ^ c3 ^ k1;
      c1 = low2;
      c3 = low0;
      k0 = (k0 + 0x9E3779B9) | 0;
      k1 = (k1 + 0xBB67AE85) | 0;
    }
    words.set([c0, c1, c2, c3], 4 * block);
  }
  return words;
}

/** Return the upper 32 bits of the product of two unsigned 32-bit words. */
function highProduct(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xFFFF, a >>> 16, b & 0xFFFF, b >>> 16];
  const middle = aHigh * bLow + Math.floor((aLow * bLow) / 65536); // below 2**32, like all these products
  return aHigh * bHigh + (middle >>> 16) + (((middle & 0xFFFF) + aLow * bHigh) / 65536 | 0);
}

/** Return standard normal numbers by Box-Muller, computed in float64 and rounded once. */
export function normal(key, step, draw, count) {
  const words = philox(key, step, draw, Math.ceil(count / 4));
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((words[i] + 0.5) * 2 ** -32));
    const angle = words[i + 1] * (2 * Math.PI * 2 ** -32);
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle); // ignored behind the end of an odd count
  }
  return values;
}

/** Return numbers in [0, 1), from the upper 24 bits of each word. */
export function uniform(key, step, draw, count) {
  return Float32Array.from(philox(key, step, draw, Math.ceil(count / 4)).subarray(0, count), (w) => (w >>> 8) * 2 ** -24);
}

// A world model: its networks in onnxruntime-web, and its games as plain data.
//
// A game is {frames, act, hx, cx, key, time}: the last n frames (oldest first) and actions, the LSTM's state, the
// key of its noise, and the number of steps. A step returns a new game and changes nothing, so a saved game is just kept.

import { Sorry, unzlib } from "./files.js";
import { contextAndKey, normal, uniform } from "./numbers.js";
import * as ort from "./ort/ort.wasm.min.mjs";

const DRAW_OF_AGENT = 1 << 20; // far from the draws of the world: an agent's choices change nothing else

/** Prepare onnxruntime-web; wasm is its program as an ArrayBuffer. */
export function prepare(wasm) {
  // half of the cores: threads that must wait for a busy core make every step slower
  const numThreads = globalThis.crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency >> 1)) : 1;
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.wasmPaths = { mjs: new URL("ort/ort-wasm-simd-threaded.mjs", import.meta.url).href };
  ort.env.wasm.numThreads = numThreads;
  ort.env.logLevel = "error";
}

async function session(file, content) {
  try {
    return await ort.InferenceSession.create(new Uint8Array(content), { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Sorry(`${file} could not be prepared (${error.message ?? error}). The browser may be short of memory: `
      + "close other tabs and reload the page.");
  }
}

const uint8 = (values, ...shape) => new ort.Tensor("uint8", values, shape);
const int32 = (values, ...shape) => new ort.Tensor("int32", Int32Array.from(values), shape);
const float32 = (values, ...shape) => new ort.Tensor("float32", values, shape);

/** Return the file that a difference makes of another: pieces of both, which docs/play_page.py lists. */
function combined(base, difference) {
  const count = new Int32Array(difference, 0, 1)[0];
  const numbers = new Int32Array(difference, 4, 2 * count);
  const parts = [];
  for (let i = 0, at = 4 + 8 * count; i < numbers.length; i += 2) {
    const [place, length] = [numbers[i], numbers[i + 1]];
    parts.push(place < 0 ? new Uint8Array(difference, at, length) : new Uint8Array(base, place, length));
    if (place < 0) at += length;
  }
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole.buffer;
}

export class World {
  /** Read a world from the contents of its files: {world, denoiser, rew_end_model, contexts, passes_2, ...}, ArrayBuffers. */
  static async read(contents) {
    const world = new World();
    world.contents = contents;
    world.about = JSON.parse(new TextDecoder().decode(contents.world));
    world.rows = await unzlib(contents.contexts);
    const [, n, h, w, c] = world.about.contexts.shape;
    return Object.assign(world, { numFrames: n, frameShape: [h, w, c], frameBytes: h * w * c });
  }

  /** Prepare the networks; before, a world has only its contexts. */
  async prepare(passes) {
    this.rewEndModel = await session("rew_end_model.onnx", this.contents.rew_end_model);
    await this.setPasses(passes);
  }

  /** Sample frames in a number of passes from now on; return false where the world has no such denoiser. */
  async setPasses(passes) {
    const difference = this.contents[`passes_${passes}`];
    if (passes > 1 && !difference) return false;
    const model = passes > 1 ? combined(this.contents.denoiser, difference) : this.contents.denoiser;
    const denoiser = await session("denoiser.onnx", model);
    await this.denoiser?.release();
    Object.assign(this, { denoiser, passes });
    return true;
  }

  /** Return the game of a seed, a BigInt, before its first step; `start` completes its memory. */
  first(seed) {
    const { index, key } = contextAndKey(seed, this.about.contexts.shape[0]);
    const zeros = new Float32Array(this.about.rew_end_model.inputs.hx.shape[1]);
    return { frames: this.context(index), act: [...this.about.contexts.act[index]], hx: zeros, cx: zeros, key, time: 0 };
  }

  /** Start the game of a seed. */
  async start(seed) {
    let game = this.first(seed);
    for (let i = 0; i < this.numFrames - 1; i++) {
      const { hx, cx } = await this.rewardAndEnd(game, this.frame(game, i), game.act[i], this.frame(game, i + 1), new Float32Array(2));
      game = { ...game, hx, cx };
    }
    return game;
  }

  /** Return the frames of a context, one after the other; in the file they lie row by row. */
  context(index) {
    const [k, n, h, w, c] = this.about.contexts.shape;
    const frames = new Uint8Array(n * this.frameBytes);
    const row = w * c;
    for (let i = 0; i < n; i++)
      for (let y = 0; y < h; y++) {
        const from = ((y * k + index) * n + i) * row;
        frames.set(this.rows.subarray(from, from + row), i * this.frameBytes + y * row);
      }
    return frames;
  }

  /** Return frame i of a game, 0 for the oldest; -1 for the latest. */
  frame(game, i = -1) {
    const from = (i < 0 ? this.numFrames + i : i) * this.frameBytes;
    return game.frames.subarray(from, from + this.frameBytes);
  }

  /** Return {game, reward, isEnd} after an action. */
  async step(game, action) {
    const act = [...game.act.slice(0, -1), action];
    const next = (await this.denoiser.run({
      obs: uint8(game.frames, 1, this.numFrames, ...this.frameShape),
      act: int32(act, 1, this.numFrames),
      noise: this.noise(game),
    })).next_obs.data;
    const draws = uniform(game.key, game.time, this.about.noise.rew_end, 2);
    const { hx, cx, reward, isEnd } = await this.rewardAndEnd(game, this.frame(game), action, next, draws);
    const frames = new Uint8Array(game.frames.length);
    frames.set(game.frames.subarray(this.frameBytes));
    frames.set(next, frames.length - this.frameBytes);
    return { game: { ...game, frames, act: [...act.slice(1), action], hx, cx, time: game.time + 1 }, reward, isEnd };
  }

  noise({ key, time }) {
    const draws = this.passes > 1 ? this.about.noise_of_passes[this.passes] : this.about.noise.frame;
    const shape = this.about.denoiser.inputs.noise.shape.slice(2);
    const count = shape.reduce((x, y) => x * y);
    const values = new Float32Array(draws.length * count);
    draws.forEach((draw, i) => values.set(normal(key, time, draw, count), i * count));
    return float32(values, 1, draws.length, ...shape);
  }

  async rewardAndEnd({ hx, cx }, obs, act, nextObs, draws) {
    const out = await this.rewEndModel.run({
      obs: uint8(obs, 1, ...this.frameShape),
      act: int32([act], 1),
      next_obs: uint8(nextObs, 1, ...this.frameShape),
      uniform: float32(draws, 1, 2),
      hx: float32(hx, 1, hx.length),
      cx: float32(cx, 1, cx.length),
    });
    return { reward: out.rew.data[0], isEnd: out.end.data[0] === 1, hx: out.next_hx.data, cx: out.next_cx.data };
  }

  release() {
    return Promise.all([this.denoiser.release(), this.rewEndModel.release()]);
  }
}

/** An agent that sees the last frames. */
export class Agent {
  static async load(contents) {
    const agent = new Agent();
    agent.about = JSON.parse(new TextDecoder().decode(contents.agent_json));
    agent.network = await session("agent.onnx", contents.agent);
    return agent;
  }

  get name() {
    return this.about.algorithm;
  }

  /** Return {action, entropy}, entropy in bits; drawn by the game's own key, so that a seed is one game. */
  async act(game) {
    const { shape } = this.about.agent.inputs.obs;
    const { logits } = await this.network.run({ obs: uint8(game.frames, 1, ...shape.slice(1)) });
    const highest = Math.max(...logits.data);
    const weights = Array.from(logits.data, (x) => Math.exp(x - highest));
    const total = weights.reduce((x, y) => x + y);
    const entropy = weights.reduce((sum, x) => sum - (x > 0 ? (x / total) * Math.log2(x / total) : 0), 0);
    let rest = uniform(game.key, game.time, DRAW_OF_AGENT, 1)[0] * total;
    const drawn = weights.findIndex((x) => (rest -= x) < 0);
    return { action: drawn < 0 ? weights.length - 1 : drawn, entropy };
  }
}

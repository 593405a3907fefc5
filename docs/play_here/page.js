// The page: loads what the build put beside it, plays at the world's frame rate, and shows pictures and facts.

import { Sorry, forgetOthers, readFile, readList } from "./files.js";
import { HeldKeys, buildPad, helpOf, listen, shortcutsOf, spell } from "./keys.js";
import { DEFAULT_HORIZON, Session, newSeed } from "./session.js";
import { Agent, World, prepare } from "./world.js";

const MAX_SEED_DIGITS = 100;
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

const $ = (id) => document.getElementById(id);
const canvas = $("picture").getContext("2d", { alpha: false });
const held = new HeldKeys((keys) => document.querySelectorAll(".key").forEach((element) =>
  element.classList.toggle("is-held", keys.includes(element.dataset.key))));
const state = { list: null, name: "", session: null, shortcuts: [], pending: [], shown: null, isStopped: false };

// --- coming

async function begin() {
  checkBrowser();
  navigator.serviceWorker?.register("offline.js").catch(() => {}); // a page that works once is better than none
  state.list = await readList();
  const { game, seed, horizon, passes, message } = readAddress();
  await load(game, { seed, horizon, passes }, true);
  if (message) state.session.say(message);
  play();
  forgetOthers(Object.values(state.list.worlds).flatMap(Object.values).concat(state.list.runtime));
}

function checkBrowser() {
  const isAble = globalThis.WebAssembly?.validate(new Uint8Array(SIMD)) && globalThis.DecompressionStream;
  if (!isAble)
    throw new Sorry("This browser cannot run the world model: it has no WebAssembly with SIMD, or cannot inflate files. "
      + "Use Chrome or Edge 97, Firefox 113, Safari 16.4 or later, without a mode that turns WebAssembly off.");
}

/** Return what the address asks for: game, seed, horizon and passes; message says what of it was not understood. */
function readAddress() {
  const given = new URLSearchParams(location.search);
  const names = Object.keys(state.list.worlds);
  const messages = [];
  const read = (name, isRight, accepted, otherwise, convert) => {
    const text = given.get(name);
    if (text === null) return otherwise;
    if (isRight(text)) return convert(text);
    messages.push(`${name} in the address must be ${accepted}, not "${text.slice(0, 20)}"`);
    return otherwise;
  };
  const isCount = (text, digits) => /^\d+$/.test(text) && text.length <= digits;
  const game = read("game", (text) => names.includes(text), names.join(" or "), names[0], String);
  const seed = read("seed", (text) => isCount(text, MAX_SEED_DIGITS), "an integer from 0", newSeed(), BigInt);
  const horizon = read("horizon", (text) => isCount(text, 9) && Number(text) > 0, "an integer from 1", DEFAULT_HORIZON, Number);
  const passes = read("passes", (text) => /^[123]$/.test(text), "1, 2 or 3", 1, Number);
  return { game, seed, horizon, passes, message: messages.join("; ") };
}

/** Load a world and start a game in it. */
async function load(name, { seed, horizon, passes }, isFirst = false) {
  const entries = Object.entries(state.list.worlds[name]);
  if (isFirst) entries.push(["runtime", state.list.runtime]);
  const total = entries.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  let loaded = 0;
  const arrived = (bytes) => {
    loaded += bytes;
    notice(`Loading ${name}: ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  };
  arrived(0);
  const contents = Object.fromEntries(await Promise.all(entries.map(async ([kind, entry]) => [kind, await readFile(entry, arrived)])));
  performance.mark("files arrived");
  if (isFirst) prepare(contents.runtime);
  const world = await World.read(contents);
  state.name = name;
  await showWhilePreparing(world, seed);
  await state.session?.release();
  await world.prepare(passes);
  const agent = contents.agent ? await Agent.load(contents) : null;
  Object.assign(state, { session: new Session(world, agent, { seed, horizon, changed: showAddress }), shortcuts: shortcutsOf(world.about) });
  await state.session.reset(seed);
  build();
  $("message").textContent = "";
}

/** Show the frame that the game starts from: networks need a second or two, mostly to be compiled. */
async function showWhilePreparing(world, seed) {
  drawFrame(world, world.first(seed));
  notice("");
  $("message").textContent = "Preparing the networks ...";
  await new Promise((resolve) => setTimeout(resolve)); // lets the browser paint
  performance.mark("first picture");
}

async function goTo(direction) {
  const names = Object.keys(state.list.worlds);
  const name = names[(names.indexOf(state.name) + direction + names.length) % names.length];
  if (name !== state.name) await load(name, { seed: newSeed(), horizon: state.session.horizon, passes: state.session.world.passes });
}

// --- the loop

const COMMANDS_OF_PAGE = {
  next_world: () => goTo(1),
  previous_world: () => goTo(-1),
  share: async () => {
    await navigator.clipboard.writeText(location.href);
    state.session.say("the address is copied: it starts this very game");
  },
  screenshot: () => canvas.canvas.toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `${state.name}_${state.session.seed}_${state.session.game.time}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }),
  help: () => { $("help").hidden = !$("help").hidden; },
};

function command(name) {
  // only within the event does a browser allow this
  if (name !== "fullscreen") state.pending.push(name);
  else if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().catch(() => {});
}

async function play() {
  let next = performance.now();
  for (;;) {
    await obey();
    if (!document.hidden) await state.session.advance(held.take());
    draw();
    if (state.session.game.time === 1 && !performance.getEntriesByName("first step").length) performance.mark("first step");
    next = Math.max(performance.now(), next + 1000 / state.session.world.about.fps);
    await new Promise((resolve) => setTimeout(resolve, next - performance.now()));
  }
}

async function obey() {
  for (const name of state.pending.splice(0)) {
    try {
      await (COMMANDS_OF_PAGE[name] ?? state.session.commands[name])();
    } catch (error) {
      if (name !== "share") throw error;
      state.session.say("the browser does not let the address be copied: copy it from the address bar");
    }
  }
}

function showAddress() {
  const { seed, horizon, world: { passes } } = state.session;
  const query = new URLSearchParams({ game: state.name, seed });
  if (horizon !== DEFAULT_HORIZON) query.set("horizon", horizon);
  if (passes !== 1) query.set("passes", passes);
  history.replaceState(null, "", `?${query}`);
}

// --- what is seen

function draw() {
  const { session } = state;
  drawFrame(session.world, session.game);
  showHeader(session.facts());
  $("message").textContent = session.message;
}

function drawFrame(world, game) {
  if (game.frames === state.shown) return;
  const [height, width] = world.frameShape;
  const frame = world.frame(game);
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; i < frame.length; i += 3, j += 4) image.data.set([frame[i], frame[i + 1], frame[i + 2], 255], j);
  Object.assign(canvas.canvas, { width, height });
  canvas.putImageData(image, 0, 0);
  state.shown = game.frames;
}

function showHeader(columns) {
  if (!$("header").childElementCount)
    $("header").replaceChildren(...columns.map((column) =>
      make("dl", {}, column.map(([name]) => make("div", {}, [make("dt", { textContent: name }), make("dd")])))));
  const values = columns.flat().map(([, value]) => value);
  $("header").querySelectorAll("dd").forEach((element, i) => {
    if (element.textContent === values[i]) return;
    element.textContent = element.title = values[i];
    element.classList.toggle("alarm", values[i].includes("yes"));
  });
}

/** Build what depends on the world: buttons, help and touch pad. */
function build() {
  const { about } = state.session.world;
  document.title = `DIAMOND ${state.name}`;
  const titles = [...new Set(state.shortcuts.map(({ group }) => group))];
  $("groups").replaceChildren(...titles.flatMap((title) => [
    make("h2", { textContent: title }),
    make("div", { className: title === "Denoising steps" ? "row of-numbers" : "row" }, state.shortcuts.filter(({ group }) => group === title).map(commandButton)),
  ]));
  $("help").replaceChildren(...helpOf(about, state.shortcuts).flatMap(([title, rows]) => [
    make("h2", { textContent: title }),
    make("dl", {}, rows.flatMap(([keys, what]) => [make("dt", { textContent: keys }), make("dd", { textContent: what })])),
  ]));
  $("pad").hidden = false;
  buildPad(about, held, $("cross"), $("fire"));
}

function commandButton({ command: name, label, text, keys }) {
  const button = make("button", { textContent: label, title: keys.length ? `${text} (${spell(keys[0])})` : text });
  button.onpointerdown = (event) => event.preventDefault(); // keeps the keyboard focus on the game
  button.onclick = () => command(name);
  return button;
}

function make(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function notice(text) {
  if (state.isStopped) return; // other files may still arrive after one that could not be read
  $("notice").hidden = !text;
  $("notice-text").textContent = text;
}

/** Stop with a sentence that says what to do. */
function stop(error) {
  console.warn(error);
  const text = error instanceof Sorry ? error.message
    : `The game stopped (${error?.message ?? error}). Reload the page; if this `
    + "stays, the browser may be short of memory, or too old: close other tabs, or use another one.";
  notice(text);
  state.isStopped = true;
}

addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  stop(event.reason);
});
listen(held, () => state.session && { ...state.session.world.about, shortcuts: state.shortcuts }, command);
begin();

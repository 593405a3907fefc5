// The page: keys, touches and sliders to the server, pictures and facts from it. It knows no game and no command except
// "fullscreen", which only a browser can do; buttons, keys and help come with the message of type "game".

import { fillPad, isForButton, nameOf } from "./pad.js";

const RETRY_MS = [500, 1000, 2000, 4000];
const FIRST_CODE_TO_STAY_AWAY = 4000; // the server closed on purpose: only the person can reconnect

const SMALLEST_SCREEN = 256; // pixels

const $ = (id) => document.getElementById(id);
const context = $("picture").getContext("2d", { alpha: false });

const state = {
  socket: null,
  retries: 0,
  game: null,       // the latest message of type "game"
  isPlayer: false,
  isFree: false,
  wasPlayer: false, // before the connection was lost: then ask for the seat again
  view: null,       // facts of the picture that comes next
  drawn: 0,         // number of the latest picture on the canvas
  status: "",
  values: [],       // of the sliders, without what the mouse says
  pointed: null,    // place of the mouse or finger on the picture, from 0 to 1, while it is down
  held: new Map(),  // maps what holds a key (a physical key, a finger) to the key's names
};

// --- the socket

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const folder = location.pathname.replace(/[^/]*$/, "");
  const socket = new WebSocket(`${scheme}//${location.host}${folder}socket${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { state.retries = 0; };
  socket.onmessage = ({ data }) => (typeof data === "string" ? receive(JSON.parse(data)) : draw(state.view, data));
  socket.onclose = ({ code, reason }) => closed(code, reason);
  state.socket = socket;
  state.drawn = 0;
}

function send(type, fields = {}) {
  if (state.socket.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ type, ...fields }));
}

function closed(code, reason) {
  state.wasPlayer = state.isPlayer || state.wasPlayer;
  state.isPlayer = false;
  state.held.clear();
  showHeld();
  restSliders();
  showSeat("");
  if (code >= FIRST_CODE_TO_STAY_AWAY) {
    state.wasPlayer = false;
    notice(state.status || sentence(reason), true);
    return;
  }
  notice("The connection was lost. Trying again ...", false);
  setTimeout(connect, RETRY_MS[Math.min(state.retries++, RETRY_MS.length - 1)]);
}

function receive(message) {
  if (message.type === "view") state.view = message;
  else if (message.type === "game") showGame(message);
  else if (message.type === "status") showStatus(message.text);
  else if (message.type === "seat") takeSeat(message);
  else if (message.type === "error") $("message").textContent = message.text;
}

function takeSeat({ is_player, is_free, num_viewers }) {
  if (is_player && !state.isPlayer) state.wasPlayer = false;
  state.isPlayer = is_player;
  state.isFree = is_free;
  if (is_free && state.wasPlayer) send("sit");
  if (!is_player) releaseAll();
  const watching = num_viewers ? `${num_viewers} watching` : "";
  const others = num_viewers > 1 ? ` with ${num_viewers - 1} more` : "";
  if (is_player) showSeat(["You play.", watching].filter(Boolean).join(" "));
  else showSeat(is_free ? "Nobody plays now." : `Somebody else plays: you are watching${others}.`);
}

// --- pictures and facts

async function draw(view, png) {
  const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }), { colorSpaceConversion: "none" });
  if (view.number > state.drawn) {
    state.drawn = view.number;
    const { canvas } = context;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      canvas.classList.toggle("has-text", bitmap.width >= SMALLEST_SCREEN); // others are frames in their own size
    }
    context.drawImage(bitmap, 0, 0);
    showFacts(view);
  }
  bitmap.close();
  send("shown", { number: view.number });
}

function showFacts({ header, message, shows_help }) {
  if (state.game?.has_header) showHeader(header);
  $("message").textContent = message;
  $("help").hidden = !shows_help;
}

function showHeader(columns) {
  const shape = JSON.stringify(columns.map((column) => column.map(([name]) => name)));
  if ($("header").dataset.shape !== shape) buildHeader(columns, shape);
  const values = columns.flat().map(([, value]) => value);
  $("header").querySelectorAll("dd").forEach((element, i) => {
    if (element.textContent === values[i]) return;
    element.textContent = values[i];
    element.title = values[i];
    element.classList.toggle("alarm", values[i].includes("yes"));
  });
}

function buildHeader(columns, shape) {
  $("header").dataset.shape = shape;
  $("header").replaceChildren(...columns.map((column) =>
    make("dl", {}, column.map(([name]) => make("div", {}, [make("dt", { textContent: name }), make("dd")])))));
}

function showStatus(text) {
  state.status = text;
  state.game = null;
  notice(text, false);
}

function notice(text, canComeAgain) {
  $("notice").hidden = !text;
  $("notice-text").textContent = text;
  $("again").hidden = !canComeAgain;
}

function showSeat(text) {
  $("seat-text").textContent = text;
  document.body.classList.toggle("is-playing", state.isPlayer);
  $("sit").hidden = state.isPlayer || !state.isFree || !text;
  document.querySelectorAll("#groups button").forEach((button) => {
    button.disabled = !state.isPlayer && button.dataset.command !== "fullscreen";
  });
  document.querySelectorAll("#sliders input, #sliders button").forEach((element) => { element.disabled = !state.isPlayer; });
}

// --- what comes with a game

function showGame(game) {
  state.game = game;
  state.status = "";
  document.title = `DIAMOND ${game.title}`;
  notice("", false);
  $("header").replaceChildren();
  delete $("header").dataset.shape;
  $("groups").replaceChildren(...game.groups.flatMap(({ title, buttons }) => group(title, buttons)));
  $("help").replaceChildren(...game.help.flatMap(([title, rows]) => [
    make("h2", { textContent: title }),
    make("dl", {}, rows.flatMap(([keys, what]) => [make("dt", { textContent: keys }), make("dd", { textContent: what })])),
  ]));
  buildSliders(game.sliders);
  const padRows = game.sliders.length ? [] : game.held_keys;
  $("pad").hidden = !padRows.length;
  fillPad(padRows, $("cross"), $("fire"), hold);
  showSeat($("seat-text").textContent);
}

function group(title, buttons) {
  const areNumbers = buttons.every(({ label }) => label.length === 1);
  return [
    make("h2", { textContent: title }),
    make("div", { className: areNumbers ? "row of-numbers" : "row" }, buttons.map(commandButton)),
  ];
}

function commandButton({ key, command, label, hint }) {
  const button = make("button", { textContent: label, title: hint });
  button.dataset.command = command;
  button.dataset.key = key;
  button.onpointerdown = (event) => event.preventDefault(); // keeps the keyboard focus on the game
  button.onclick = () => press(key);
  return button;
}

function press(key) {
  if (state.game?.shortcuts[key] === "fullscreen") toggleFullscreen();
  else if (state.isPlayer) send("press", { key });
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().catch(() => {});
}

function make(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// --- keys that are held

function hold(source, keys) {
  const before = heldKeys();
  if (keys.length) state.held.set(source, keys);
  else state.held.delete(source);
  const after = heldKeys();
  if (state.isPlayer) {
    for (const key of before) if (!after.has(key)) send("up", { key });
    for (const key of after) if (!before.has(key)) send("down", { key });
  }
  showHeld();
}

const heldKeys = () => new Set([...state.held.values()].flat());

function releaseAll() {
  if (state.isPlayer) send("release");
  state.held.clear();
  showHeld();
  restSliders();
}

function showHeld() {
  const held = heldKeys();
  document.querySelectorAll(".key").forEach((element) => {
    element.classList.toggle("is-held", held.has(element.dataset.key));
  });
}

// --- the keyboard

const isGames = (key) => state.game?.held_keys.some(([name]) => name === key);

function keyDown(event) {
  if (event.altKey || event.metaKey || isForButton(event) || isForSlider(event)) return;
  const name = nameOf(event);
  const key = event.ctrlKey ? `ctrl+${name}` : name;
  const isShortcut = key in (state.game?.shortcuts ?? {});
  if (!isShortcut && !isGames(key)) return;
  if (!state.isPlayer && state.game.shortcuts[key] !== "fullscreen") return;
  if (key === "f11") return; // left to the browser
  event.preventDefault();
  if (event.ctrlKey || state.game.shortcuts[key] === "fullscreen") {
    if (!event.repeat) press(key);
  } else if (event.repeat) {
    send("down", { key });
  } else {
    hold(event.code || key, [key]);
  }
}

const isForSlider = ({ key }) =>
  document.activeElement instanceof HTMLInputElement && /^(Arrow|Page|Home|End)/.test(key);

addEventListener("keydown", keyDown);
addEventListener("keyup", (event) => hold(event.code || nameOf(event), []));
addEventListener("blur", releaseAll);
document.addEventListener("visibilitychange", () => { if (document.hidden) releaseAll(); });

// --- continuous parts of an action: a slider for each, which stays, and the mouse or a finger on the picture

function buildSliders(sliders) {
  $("sliders").hidden = !sliders.length;
  $("picture").classList.toggle("is-pad", sliders.length > 0);
  $("sliders").replaceChildren(...sliders.map(slider));
  restSliders();
}

function slider({ name, low, high, rest }, part) {
  const input = make("input", { type: "range", min: low, max: high, step: "any", ariaLabel: name });
  input.oninput = () => slide(part, Number(input.value));
  input.onpointerup = () => input.blur(); // the arrow keys are the game's again
  const button = make("button", { textContent: name, title: `${name}: back to ${short(rest)}` });
  button.onpointerdown = (event) => event.preventDefault();
  button.onclick = () => slide(part, rest);
  const [least, most] = [low, high].map((bound) => make("span", { textContent: short(bound) }));
  return make("div", {}, [button, least, input, most, make("output")]);
}

const short = (value) => String(Number(value.toPrecision(3)));

function slide(part, value) {
  if (!state.isPlayer) return;
  state.values[part] = value;
  send("slide", { part, value });
  showSliders();
}

function restSliders() {
  state.pointed = null;
  state.values = (state.game?.sliders ?? []).map(({ rest }) => rest);
  showSliders();
}

function showSliders() {
  const [inputs, outputs] = ["input", "output"].map((tag) => $("sliders").getElementsByTagName(tag));
  (state.game?.sliders ?? []).forEach(({ low, high }, part) => {
    const place = state.pointed?.[part];
    const value = place === undefined ? state.values[part] : low + place * (high - low);
    inputs[part].value = value;
    outputs[part].value = short(value);
  });
}

function pointAt({ clientX, clientY }) {
  const { left, top, width, height } = $("picture").getBoundingClientRect();
  const inside = (place) => Math.min(1, Math.max(0, place));
  state.pointed = [inside((clientX - left) / width), inside((clientY - top) / height)];
  send("point", { x: state.pointed[0], y: state.pointed[1] });
  showSliders();
}

function liftPointer() {
  if (!state.pointed) return;
  state.pointed = null;
  send("lift");
  showSliders();
}

$("picture").onpointerdown = (event) => {
  if (!state.game?.sliders.length || !state.isPlayer || event.button !== 0 || !event.isPrimary) return;
  event.preventDefault();
  $("picture").setPointerCapture(event.pointerId);
  pointAt(event);
};
$("picture").onpointermove = (event) => { if (state.pointed && event.isPrimary) pointAt(event); };
$("picture").onpointerup = $("picture").onpointercancel = (event) => { if (event.isPrimary) liftPointer(); };

// --- coming and going

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "The server closed the connection.");

$("again").onclick = () => { notice("Connecting ...", false); connect(); };
$("sit").onclick = () => { send("sit"); document.activeElement.blur(); };
$("again").addEventListener("click", () => document.activeElement.blur());

connect();

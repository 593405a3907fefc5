// A game that a person or an agent plays: its state, changed by named commands and held keys. No page, no drawing.

const SPEED_STEPS = 15; // steps whose median time is the speed in the header
const REST_SECONDS = 0.5; // for which the end of an episode stays on the screen
const NO_MOMENT = { action: null, entropy: null, outcome: null, total: 0 };
export const DEFAULT_HORIZON = 50;

export class Session {
  /** world: a World; agent: an Agent or null; changed: called when another seed or horizon is played. */
  constructor(world, agent, { seed, horizon, changed }) {
    Object.assign(this, { world, agent, seed, horizon, changed });
    this.isHuman = !agent;
    this.isPaused = this.isStepping = false;
    this.saved = null;
    this.message = "";
    this.seconds = [];
    this.commands = {
      reset: () => this.reset(newSeed()),
      again: () => this.reset(this.seed),
      controller: () => this.switchController(),
      pause: () => this.say((this.isPaused = !this.isPaused) ? "paused" : "resumed"),
      step: () => (this.isPaused ? (this.isStepping = true) : this.say("a single step needs a paused game")),
      longer_horizon: () => this.setHorizon(this.horizon + 1),
      shorter_horizon: () => this.setHorizon(this.horizon - 1),
      ...Object.fromEntries([1, 2, 3].map((n) => [`passes_${n}`, () => this.setPasses(n)])),
      save: () => this.save(),
      load: () => this.load(),
    };
  }

  say(text) {
    this.message = text;
  }

  get isOver() {
    return this.moment.outcome !== null && (this.moment.outcome.isEnd || this.moment.outcome.isTruncated);
  }

  async reset(seed) {
    this.game = await this.world.start(seed);
    this.seed = seed;
    this.moment = NO_MOMENT;
    this.resting = 0;
    this.changed();
  }

  /** Take a step with the keys that are held, unless the game is paused or shows the end of an episode. */
  async advance(held) {
    const isStepping = this.isStepping;
    this.isStepping = false;
    if (this.isPaused && !isStepping) return;
    if (this.resting > 0 && !isStepping) this.resting--;
    else if (this.isOver) await this.reset(newSeed());
    else await this.step(held);
  }

  async step(held) {
    const start = performance.now();
    const choice = this.isHuman ? null : await this.agent.act(this.game);
    const action = choice?.action ?? actionOf(this.world.about, held);
    const { game, reward, isEnd } = await this.world.step(this.game, action);
    this.seconds = [...this.seconds.slice(1 - SPEED_STEPS), (performance.now() - start) / 1000];
    const outcome = { reward, isEnd, isTruncated: game.time >= this.horizon && !isEnd };
    this.game = game;
    this.moment = { action, entropy: choice?.entropy ?? null, outcome, total: this.moment.total + reward };
    if (this.isOver) this.resting = Math.round(REST_SECONDS * this.world.about.fps);
  }

  switchController() {
    if (!this.agent) return this.say(`no agent comes with ${this.world.about.game}: you play`);
    this.isHuman = !this.isHuman;
    this.say(this.isHuman ? "you play" : `the ${this.agent.name} agent plays`);
  }

  setHorizon(horizon) {
    if (horizon < 1) return this.say("the horizon must be at least 1 step");
    this.horizon = horizon;
    this.changed();
  }

  async setPasses(passes) {
    if (!await this.world.setPasses(passes)) return this.say(`${this.world.about.game} has no ${passes} passes here`);
    this.seconds = [];
    this.changed();
  }

  save() {
    const { game, moment, seed } = this;
    this.saved = { game, moment, seed };
    this.say(`step ${game.time} saved`);
  }

  load() {
    if (!this.saved) return this.say("nothing has been saved yet");
    Object.assign(this, this.saved, { resting: 0 });
    this.changed();
    this.say(`back at step ${this.game.time}`);
  }

  /** Free the memory of the networks. */
  release() {
    return Promise.all([this.world.release(), this.agent?.network.release()]);
  }

  /** Return the header: columns of names and values. */
  facts() {
    const { action, entropy, outcome, total } = this.moment;
    const { order, s_churn: churn } = this.world.about.sampler;
    return [
      [
        ["Environment", `${this.world.about.game}, world model`],
        ["Controller", this.isHuman ? "human" : `policy (${this.agent.name})`],
        ["Time step", `${this.game.time}${this.isPaused ? " (paused)" : ""}`],
        ["Horizon", `${this.horizon}`],
        ["Seed", `${this.seed}`],
      ],
      [
        ["Truncated / done", `${yesNo(outcome?.isTruncated)} / ${yesNo(outcome?.isEnd)}`],
        ["Reward", outcome ? `${outcome.reward}` : "-"],
        ["Return", `${total}`],
        ["Action", action === null ? "-" : this.world.about.actions[action].name],
        ["Speed", this.seconds.length ? `${Math.round(1 / median(this.seconds))} steps/s` : "-"],
      ],
      [
        ["Entropy", entropy === null ? "" : `${entropy.toFixed(2)} bits`],
        ["Denoising", `${this.world.passes} x ${order === 1 ? "Euler" : "Heun"}`],
        ["Churn", churn.toFixed(1)],
        ["Saved state", this.saved ? `step ${this.saved.game.time}` : "none"],
      ],
    ];
  }
}

/** Return a random seed, short enough to be read aloud. */
export function newSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Return the action of the keys that are held, in the order in which they were pressed: of as many as possible, the latest first. */
export function actionOf({ actions, idle }, held) {
  const rank = ({ keys }) => [keys.length, ...keys.map((key) => held.indexOf(key)).sort((x, y) => y - x)];
  const isLater = (a, b) => {
    const i = a.findIndex((x, j) => x !== b[j]);
    return i >= 0 && a[i] > b[i];
  };
  return actions.reduce((best, action, i) => {
    if (!action.keys.length || !action.keys.every((key) => held.includes(key))) return best;
    return best === idle || isLater(rank(action), rank(actions[best])) ? i : best;
  }, idle);
}

const yesNo = (flag) => (flag ? "yes" : "no");

function median(values) {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[Math.floor(sorted.length / 2)];
}

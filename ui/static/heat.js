// The answers, a column for each policy: the growing text, then every token in the colour of its log-ratio to SFT.

import { make } from "./make.js";
import { reasoningTitle, seen } from "./visible.js";

export const SFT = "sft";
const MOVED_MOST = 5;
const FAR = 0.5; // share of full colour from which a token is underlined too
const ENDED = { eos: "ended by itself", limit: "cut at the limit", stopped: "stopped" };

export class Columns {
  constructor(page) {
    this.page = page;
    this.place = page.querySelector(".tu-columns");
    this.tip = page.querySelector(".tu-tip");
    this.full = 2; // nats of full colour
    this.of = new Map(); // policy: its column
    addEventListener("resize", () => this.point(null));
  }

  begin(policies) {
    this.point(null);
    this.of = new Map(policies.map((policy) => [policy.name, new Column(policy, this)]));
    this.place.replaceChildren(...[...this.of.values()].map((column) => column.element));
  }

  step({ texts, seconds }) {
    for (const [name, text] of Object.entries(texts)) this.of.get(name).grow(text, seconds);
  }

  answer(event) {
    this.of.get(event.policy).end(event);
  }

  score({ policy, score }) {
    this.of.get(policy).score(score);
  }

  ratios(event) {
    this.of.get(event.policy).colour(event);
  }

  /** The job has ended, for whatever reason: no text grows any more. */
  rest() {
    for (const column of this.of.values()) column.text.removeAttribute("aria-busy");
  }

  get whole() {
    return [...this.of.values()].every((column) => column.ended);
  }

  rescale(full) {
    this.full = full;
    for (const column of this.of.values()) column.rescale();
    for (const way of ["less", "more"]) {
      this.page.querySelector(`[data-end=${way}]`).textContent =
        `${signed(way === "less" ? -full : full)} nats: ${times(full)} times ${way === "less" ? "less" : "as"} likely`;
    }
  }

  /** Show `nodes`, the number of a piece, beside it; null hides them. */
  point(piece, nodes) {
    this.tip.hidden = !piece;
    if (!piece) return;
    this.tip.replaceChildren(...nodes);
    const [box, around] = [piece.getClientRects()[0], this.page.getBoundingClientRect()];
    const left = Math.min(box.left, innerWidth - this.tip.offsetWidth - 8);
    const above = box.top - this.tip.offsetHeight - 6;
    const top = above > 70 ? above : box.bottom + 6; // not under the bar, which stays at the top
    this.tip.style.left = `${Math.max(left, 8) - around.left}px`;
    this.tip.style.top = `${top - around.top}px`;
  }
}

class Column {
  constructor({ name, title }, columns) {
    Object.assign(this, { name, title, columns, texts: [], reasoned: 0, ended: false, facts: {} });
    Object.assign(this, { pieces: [], spans: [], at: -1 });
    this.state = make("span", { className: "tu-ended" });
    const header = make("header", {}, make("h2", { id: `open-${name}` }, title), this.state);
    this.factsLine = make("p", { className: "tu-facts" });
    const reasoning = { className: "tu-reasoning", hidden: true };
    const region = { role: "region", ariaLabel: `Reasoning of ${title}`, tabIndex: 0, dir: "auto" };
    this.reasoning = make("details", reasoning, make("summary"), make("div", region));
    this.text = make("div", { className: "tu-stream", dir: "auto" });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-labelledby", `open-${name}`);
    this.text.setAttribute("aria-busy", "true");
    this.moved = make("div", { className: "tu-moved", id: `open-${name}-moved`, hidden: true });
    this.spoken = make("p", { className: "tu-hide" });
    this.spoken.setAttribute("role", "status");
    const parts = [header, this.factsLine, this.reasoning, this.text, this.moved, this.spoken];
    this.element = make("article", { className: "tu-column" }, ...parts);
    this.element.dataset.policy = name;
    this.showFacts();
  }

  grow(text, seconds) {
    this.texts.push(text);
    this.text.append(...seen(text));
    this.speed(seconds);
  }

  speed(seconds) {
    const tokens = this.texts.length - this.reasoned;
    this.facts.tokens = [tokens, tokens === 1 ? "token" : "tokens"];
    if (seconds > 0) this.facts.speed = [(this.texts.length / seconds).toFixed(1), "tokens/s"];
    this.showFacts();
  }

  end({ ended, reasoning_tokens, seconds }) {
    this.ended = true;
    this.reasoned = reasoning_tokens;
    if (reasoning_tokens) this.fold();
    this.text.removeAttribute("aria-busy");
    this.state.textContent = ENDED[ended];
    this.state.dataset.ended = ended;
    this.speed(seconds);
  }

  /** Move the reasoning, which comes first, into a fold above the answer; it does not count as its length. */
  fold() {
    const reasoning = this.texts.slice(0, this.reasoned).join("");
    this.reasoning.hidden = false;
    this.reasoning.firstChild.textContent = reasoningTitle(reasoning.replace(/<\/?\w+>/g, " "));
    this.reasoning.lastChild.replaceChildren(...seen(reasoning));
    this.text.replaceChildren(...seen(this.texts.slice(this.reasoned).join("")));
  }

  score(value) {
    this.facts.score = [signed(value), "by the reward model"];
    this.showFacts();
  }

  showFacts() {
    this.factsLine.replaceChildren(
      ...Object.entries(this.facts).map(([fact, [number, unit]]) =>
        make("span", { className: `tu-${fact}` }, make("b", {}, `${number}`), ` ${unit}`),
      ),
    );
    if (!this.factsLine.childElementCount) this.factsLine.textContent = "there is no token yet";
  }

  // ---- Colours ----------------------------------------------------------------------------------------------------

  colour({ pieces, sum, reference }) {
    this.pieces = pieces;
    const spans = pieces.map((piece) => {
      const className = piece.end || !piece.text ? "tu-piece mark" : "tu-piece";
      const text = piece.end ? ["end"] : piece.text ? seen(piece.text) : [visible("")];
      const span = make("span", { className }, ...text);
      span.dataset.way = piece.nats < 0 ? "less" : "more";
      return span;
    });
    let tokens = 0;
    this.first = pieces.findIndex((piece) => (tokens += piece.tokens) > this.reasoned); // the answer's first piece
    if (this.first < 0) this.first = spans.length;
    this.spans = spans;
    if (this.reasoned) this.reasoning.lastChild.replaceChildren(...spans.slice(0, this.first));
    this.text.replaceChildren(...spans.slice(this.first));
    this.rescale();
    this.text.tabIndex = 0;
    this.text.setAttribute("aria-describedby", this.moved.id);
    for (const part of [this.text, this.reasoning]) {
      part.addEventListener("pointerover", ({ target }) =>
        this.show(spans.indexOf(target.closest(".tu-piece")), false),
      );
      part.addEventListener("pointerleave", () => this.columns.point(null));
    }
    this.text.addEventListener(
      "focus",
      () => this.text.matches(":focus-visible") && this.show(Math.max(this.at, this.least)),
    );
    this.text.addEventListener("blur", () => this.hide());
    this.text.addEventListener("keydown", (event) => this.key(event));
    this.summarise(sum, reference);
  }

  rescale() {
    this.spans.forEach((span, i) => {
      const size = Math.min(Math.abs(this.pieces[i].nats) / this.columns.full, 1);
      span.style.setProperty("--size", size.toFixed(3));
      span.classList.toggle("far", size >= FAR);
    });
  }

  /** The first visible piece: the answer's first, unless the reasoning is open. */
  get least() {
    return this.reasoning.open ? 0 : this.first;
  }

  /** Show a piece's number beside it; assistive technology reads it if the piece was reached by a key. */
  show(at, byKey = true) {
    const span = this.spans[at];
    if (!span) return this.columns.point(null);
    const { nats, tokens } = this.pieces[at];
    const several = tokens > 1 ? ` (${tokens} tokens)` : "";
    const number = make("b", {}, `${signed(nats)} nats`);
    const words = [`${this.word(at)}${several}: `, number, `, ${likely(nats)} ${joins(nats)} under SFT`];
    this.columns.point(span, words);
    if (!byKey) return;
    this.element.querySelector(".at")?.classList.remove("at");
    span.classList.add("at");
    span.scrollIntoView({ block: "nearest" });
    this.columns.point(span, words);
    this.at = at;
    this.spoken.textContent = this.columns.tip.textContent;
  }

  hide() {
    this.element.querySelector(".at")?.classList.remove("at");
    this.columns.point(null);
  }

  key(event) {
    const last = this.pieces.length - 1;
    const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: this.least, End: last }[event.key];
    if (event.key === "Escape") this.hide();
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.show(Math.min(Math.max(to, this.least), last));
  }

  word(at) {
    const { text, end } = this.pieces[at];
    return end ? "end of the answer" : `“${visible(text)}”`;
  }

  summarise(sum, reference) {
    const total = make("b", {}, `${signed(sum)} nats`);
    const other = reference === SFT ? "SFT" : reference;
    const meaning = `: ${likely(sum)} under ${this.title} ${joins(sum)} under ${other}.`;
    const order = this.pieces
      .map((_, i) => i)
      .sort((a, b) => Math.abs(this.pieces[b].nats) - Math.abs(this.pieces[a].nats));
    const items = order.slice(0, MOVED_MOST).map((at) => {
      const { end, text, nats } = this.pieces[at];
      return make("li", {}, make("code", {}, end ? "end" : visible(text)), ` ${signed(nats)}`);
    });
    const list = make("ol", { ariaLabel: "Tokens that changed most" }, ...items);
    const most = make("p", { className: "tu-fine" }, "These tokens changed most, in nats:");
    this.moved.replaceChildren(make("p", {}, "Whole answer ", total, meaning), most, list);
    this.moved.hidden = false;
  }
}

// ---- Words ----------------------------------------------------------------------------------------------------------

/** A number with its sign; the minus sign is as wide as the plus. */
export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** e^|nats| as text. */
export function times(nats) {
  const ratio = Math.exp(Math.abs(nats));
  if (ratio < 2) return ratio.toFixed(2);
  if (ratio < 10) return ratio.toFixed(1);
  if (ratio < 10_000) return Math.round(ratio).toLocaleString("en");
  return `10${`${Math.round(Math.abs(nats) / Math.LN10)}`.replace(/./g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])}`;
}

const likely = (nats) =>
  Math.abs(nats) < 0.005
    ? "as likely"
    : nats > 0
      ? `${times(nats)} times as likely`
      : `${times(nats)} times less likely`;
const joins = (nats) => (nats <= -0.005 ? "than" : "as");

/** A text whose line breaks, and blanks at its ends, are visible signs. */
const visible = (text) => text.replace(/\n/g, "↵").replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length)) || "∅";

// The view of a task: the prompt and its answers, rendered, as raw text, or with their differences.

import { markDifferences } from "./marks.js";
import { letter } from "./ranking.js";
import { reasoningTitle, seen } from "./visible.js";

const STORED = "trueup/view";
const SIZES = { some: "Show more of the prompt", all: "Show one line of the prompt", line: "Show the prompt" };

export class View {
  constructor(page) {
    const find = (selector) => page.querySelector(selector);
    Object.assign(this, {
      page,
      answers: find(".tu-answers"),
      promptText: find(".tu-prompt-text"),
      work: find(".tu-work"),
    });
    this.task = null;
    this.options = { size: "some", raw: false, diff: false, ...JSON.parse(localStorage.getItem(STORED) ?? "{}") };
    this.resize(this.options.size);
    this.promptText.addEventListener("scroll", () => this.hint(), { passive: true });
    addEventListener("resize", () => this.hint());
  }

  show(task) {
    this.task = task;
    this.page.dataset.kind = task.answers.length > 2 ? "ranking" : "pair";
    if (this.answers.children.length !== task.answers.length) this.build(task.answers.length);
    this.promptText.innerHTML = task.prompt; // rendered and made safe on the server
    this.fill();
    this.fold();
    for (const scrolled of [this.work, ...this.texts]) scrolled.scrollTo(0, 0);
    this.toLastTurn();
    this.hint();
  }

  /** Scroll to the last turn of a conversation, which the answers follow; the earlier turns are above it. */
  toLastTurn() {
    const turns = this.promptText.children;
    this.promptText.scrollTo(0, 0);
    if (turns.length < 2) return;
    const line = this.options.size === "line";
    const last = turns[turns.length - 1];
    const start = line ? (last.children[1] ?? last) : last; // one line has no room for the speaker
    const above = line ? 0 : 8; // pixels of the turn before, so that people see that there is one
    this.promptText.scrollTo(
      0,
      start.getBoundingClientRect().top - this.promptText.getBoundingClientRect().top - above,
    );
  }

  /** Fades either end of the prompt where there is more of it. */
  hint() {
    const { scrollHeight, scrollTop, clientHeight } = this.promptText;
    this.promptText.classList.toggle("before", scrollTop > 4);
    this.promptText.classList.toggle("more", scrollHeight - scrollTop - clientHeight > 4);
  }

  build(count) {
    const article = (_, place) =>
      `<article class="tu-answer" data-answer="${place}">` +
      `<header><h2>${letter(place)}</h2><span class="tu-rank"></span></header>` +
      `<details class="tu-reasoning" hidden><summary></summary>` +
      `<div role="region" aria-label="Reasoning of ${letter(place)}" tabindex="0" dir="auto"></div></details>` +
      `<div class="tu-text" role="region" aria-label="Answer ${letter(place)}" tabindex="0" dir="auto"></div>` +
      `</article>`;
    this.answers.innerHTML = Array.from({ length: count }, article).join("");
    this.answers.style.setProperty("--count", count);
    this.texts = [...this.answers.querySelectorAll(".tu-text")];
  }

  /** Show the answers; returns a sentence on their differences if those are shown, else null. */
  fill() {
    const { raw, diff } = this.options;
    this.texts.forEach((text, place) => {
      text.classList.toggle("tu-raw", raw);
      if (raw) text.replaceChildren(...seen(this.task.answers[place].text));
      else text.innerHTML = this.task.answers[place].html;
    });
    return diff && this.texts.length === 2 ? markDifferences(...this.texts) : null;
  }

  /** Fold the reasoning that a model wrote before its answer: people may read it, and do not judge it. */
  fold() {
    this.answers.querySelectorAll(".tu-reasoning").forEach((details, place) => {
      const { reasoning } = this.task.answers[place];
      Object.assign(details, { hidden: !reasoning, open: false });
      details.firstChild.textContent = reasoningTitle(reasoning);
      details.lastChild.replaceChildren(...seen(reasoning));
    });
  }

  /** Switch the option `raw` or `diff`. */
  toggle(option) {
    this.options[option] = !this.options[option];
    this.save();
    return this.fill();
  }

  resize(size = { some: "all", all: "line", line: "some" }[this.options.size]) {
    this.options.size = size;
    this.page.querySelector(".tu-prompt").dataset.size = size;
    const button = this.page.querySelector("[data-do=prompt]");
    button.setAttribute("aria-label", SIZES[size]);
    button.title = SIZES[size];
    this.toLastTurn();
    this.hint();
    this.save();
  }

  ranks(names) {
    this.answers.querySelectorAll(".tu-rank").forEach((rank, place) => (rank.textContent = names[place] ?? ""));
  }

  /** Mark the best answers, in practice and after a vote; an empty list removes the marks. */
  best(places) {
    for (const article of this.answers.children) {
      article.classList.toggle("best", places.includes(Number(article.dataset.answer)));
    }
  }

  save() {
    localStorage.setItem(STORED, JSON.stringify(this.options));
  }
}

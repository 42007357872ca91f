// The actions of the labelling page, and their keys. Keys can be changed or switched off one by one, and all together
// (WCAG 2.1.4); a person's choice is kept in this browser.

/** id, name, key, and a second key for rankings, where letters stand for answers. */
export const GRADED = [
  ["a_much", "A much better", "1"],
  ["a", "A better", "2"],
  ["a_slightly", "A slightly better", "3"],
  ["tie", "Equal", "4"],
  ["both_bad", "Both bad", "0"],
  ["b_slightly", "B slightly better", "5"],
  ["b", "B better", "6"],
  ["b_much", "B much better", "7"],
];
export const PLAIN = [
  ["a", "A is better", "1"],
  ["tie", "Tie", "t"],
  ["both_bad", "Both bad", "0"],
  ["b", "B is better", "2"],
];
const RANKING = [
  ["with", "Next letter ties with the last", "="],
  ["back", "Take the last letter back", "Backspace"],
  ["submit", "Send the ranking", "Enter"],
];
const TOOLS = [
  ["skip", "Skip", "s", "k"],
  ["flag", "Flag", "f", "x"],
  ["undo", "Undo", "u", "u"],
  ["note", "Note", "n", "n"],
  ["write", "Write ideal", "e", "w"],
  ["diff", "Differences", "d"],
  ["raw", "Raw text", "m", "m"],
  ["prompt", "Size of the prompt", "p", "p"],
  ["guideline", "Guideline", "g", "y"],
  ["mirror", "Your own figures", "o", "o"],
  ["help", "Help and keys", "?", "?"],
];
const CRITERIA_KEYS = ["h", "j", "k"];
const STORED = "trueup/keys";

export class Keys {
  constructor() {
    const { on = true, changed = {} } = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    Object.assign(this, { on, changed, actions: [], letters: 0 });
  }

  /** Set up the actions for a pair, or for a ranking of this many answers; those in `without` are left out. */
  of(answers, scale, criteria, without = []) {
    this.letters = answers > 2 ? answers : 0;
    const choices = scale === "graded" ? GRADED : PLAIN;
    const there = TOOLS.filter(([id]) => !without.includes(id) && (!this.letters || id !== "diff"));
    const tools = there.map(([id, name, key, other]) => [id, name, this.isLetter(key) ? other : key]);
    const asked = criteria.map((name, i) => [`criterion-${i}`, `Criterion: ${name}`, CRITERIA_KEYS[i] ?? null]);
    const chosen = this.letters ? RANKING : choices;
    this.actions = [...chosen, ...tools, ...asked].map(([id, name, key]) => ({ id, name, standard: key }));
    this.scope = this.letters ? "ranking" : scale;
  }

  isLetter(key) {
    return key !== null && key.length === 1 && key >= "a" && key < String.fromCharCode(97 + this.letters);
  }

  /** The key of an action; null: it has none, or it is switched off. */
  key(id) {
    const name = this.name(id);
    if (name in this.changed) return this.changed[name];
    return this.actions.find((action) => action.id === id)?.standard ?? null;
  }

  /** The name of an action's setting. Choices have keys of their own on each scale. */
  name(id) {
    return TOOLS.some(([tool]) => tool === id) && !this.letters ? id : `${this.scope}/${id}`;
  }

  /** The action of a keydown, {id}, or its answer, {letter, tie}; null: neither. */
  find(event) {
    const typed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    // Where the layout has other letters, or digits under Shift, the place of the key counts.
    const placed = event.shiftKey ? null : /^(?:Key|Digit)(\w)$/.exec(event.code)?.[1].toLowerCase();
    for (const key of [typed, placed]) {
      if (!key) continue;
      if (this.isLetter(key)) return { letter: key.charCodeAt(0) - 97, tie: event.shiftKey };
      const action = this.actions.find(({ id }) => this.key(id) === key);
      if (action) return { id: action.id };
    }
    return null;
  }

  /** Give an action another key (null: none). Returns null, or the reason why it cannot have this key. */
  change(id, key) {
    if (key !== null) {
      const holder = this.isLetter(key) ? `answer ${key.toUpperCase()}` : this.holder(key, id);
      if (holder) return `${show(key)} is taken by ${holder}`;
      if (key === "Tab" || key === "Escape" || key === " ") return `${show(key)} is needed to move about the page`;
    }
    this.changed[this.name(id)] = key;
    this.save();
    return null;
  }

  holder(key, id) {
    return this.actions.find((action) => action.id !== id && this.key(action.id) === key)?.name;
  }

  reset() {
    Object.assign(this, { on: true, changed: {} });
    this.save();
  }

  save() {
    localStorage.setItem(STORED, JSON.stringify({ on: this.on, changed: this.changed }));
  }
}

/** A key as it is printed on a keyboard. */
export function show(key) {
  return { " ": "Space", Backspace: "⌫", Enter: "Enter ↵" }[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}

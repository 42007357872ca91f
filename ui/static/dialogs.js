// The panels over the labelling page. Native dialogs: they hold the focus, and Escape closes them.

import { show } from "./keys.js";
import { make, makeButton } from "./make.js";
import { letter } from "./ranking.js";

export function setUpDialogs(page) {
  for (const dialog of page.querySelectorAll("dialog")) {
    dialog.querySelector(".tu-close").addEventListener("click", () => shut(dialog));
    dialog.addEventListener("click", (event) => event.target === dialog && shut(dialog)); // beside it
    dialog.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault(); // the browser itself would close it a moment later, and swallow the next key
      shut(dialog);
    });
  }
}

/** Close a dialog; the focus is at once where it was before. */
function shut(dialog) {
  document.activeElement.blur();
  dialog.close();
}

export const isOpen = (page) => page.querySelector("dialog[open]") !== null;

// ---- How you label ----------------------------------------------------------------------------------------------

const percent = (share) => `${Math.round(100 * share)} %`;
const range = ({ ci_low, ci_high }) => `95 % interval ${percent(ci_low)} to ${percent(ci_high)}`;
const apart = ({ ci_low, ci_high }, from) => ci_low > from || ci_high < from;
const FEW = 20;

/** Rows for an annotator who watches their own habits: [what, figure, advice]. */
export function coaching({ labels, skips, labels_per_hour, left, longer }, { many }) {
  const rows = [[many.replace(/^./, (first) => first.toUpperCase()), `${labels}, and ${skips} skipped`, ""]];
  if (labels_per_hour) rows.push(["Pace", `about ${Math.round(labels_per_hour)} an hour`, "There is no hurry."]);
  const known = (figure) => figure && figure.n >= FEW && figure.value !== null;
  if (!known(left)) {
    rows.push(["Your habits", "too early to tell", `They show after ${FEW} ${many} with a clear preference.`]);
    return rows;
  }
  rows.push([
    "The answer shown first",
    `preferred in ${percent(left.value)} of ${left.n} (${range(left)})`,
    apart(left, 0.5)
      ? "Sides are drawn by lot, so it should be about half. Try reading B first for a while."
      : "About half, as it should be: sides are drawn by lot.",
  ]);
  if (known(longer)) {
    const advice = {
      true: "Longer can be better. Ask of each pair whether the extra words help.",
      false: "Shorter can be better. Ask of each pair whether something is missing.",
    };
    rows.push([
      "The longer answer",
      `preferred in ${percent(longer.value)} of ${longer.n} (${range(longer)})`,
      apart(longer, 0.5) ? advice[longer.value > 0.5] : "Length does not seem to sway you.",
    ]);
  }
  return rows;
}

/** Open the dialog with these figures; `words` has the nouns for labels or for votes. */
export function showMirror(dialog, figures, words) {
  const row = ([what, figure, advice]) =>
    make("li", {}, make("strong", {}, what), make("span", {}, figure), make("p", {}, advice));
  const rows = figures ? coaching(figures, words) : [["Not available now", "the server does not answer", ""]];
  dialog.querySelector("ul").replaceChildren(...rows.map(row));
  dialog.showModal();
}

// ---- Help and keys ----------------------------------------------------------------------------------------------

/** Fill the dialog with the actions and their keys; onChange() is called when it is drawn. Returns what opens it. */
export function setUpHelp(dialog, keys, onChange) {
  const [list, hint, on] = ["ul", ".tu-hint", "input"].map((selector) => dialog.querySelector(selector));
  let waiting = null; // the action whose key the next press sets

  function draw(text = "") {
    hint.textContent = text;
    on.checked = keys.on;
    const focused = dialog.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    list.replaceChildren(...keys.actions.map(row));
    if (focused) list.querySelector(`[data-focus="${focused}"]`)?.focus();
    onChange();
  }

  function row({ id, name }) {
    const key = keys.key(id);
    const button = (text, label, focus, does) => {
      const element = makeButton(text, does);
      element.setAttribute("aria-label", label);
      element.dataset.focus = focus;
      return element;
    };
    const keyName = key === null ? "no key" : show(key);
    const change = button(
      waiting === id ? "press a key" : keyName,
      `${name}: ${keyName}. Change`,
      `${id}/change`,
      () => {
        waiting = id;
        draw(`Press the key for “${name}”. Escape leaves it as it is.`);
      },
    );
    change.classList.toggle("waiting", waiting === id);
    const off = button("Off", `${name}: switch the key off`, `${id}/off`, () => {
      keys.change(id, null);
      draw(`“${name}” has no key now.`);
    });
    off.disabled = key === null;
    return make("li", {}, make("span", {}, name), change, off);
  }

  dialog.addEventListener("keydown", (event) => {
    if (waiting === null || ["Shift", "Control", "Alt", "Meta", "AltGraph"].includes(event.key)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const id = waiting;
    waiting = null;
    if (event.key === "Escape" || event.ctrlKey || event.metaKey || event.altKey) return draw();
    const problem = keys.change(id, event.key.length === 1 ? event.key.toLowerCase() : event.key);
    draw(problem ?? `Changed to ${show(keys.key(id))}.`);
  });
  dialog.addEventListener("close", () => (waiting = null));
  on.addEventListener("change", () => {
    keys.on = on.checked;
    keys.save();
    onChange();
  });
  dialog.querySelector(".tu-reset").addEventListener("click", () => {
    keys.reset();
    draw("All keys are as they were in the beginning.");
  });
  return () => {
    draw();
    dialog.showModal();
  };
}

// ---- The ideal answer -------------------------------------------------------------------------------------------

/** An editor over the task on the screen. It keeps a draft of each task while this browser window is open. */
export function setUpEditor(dialog, save) {
  const [text, from] = [dialog.querySelector("textarea"), dialog.querySelector(".tu-from")];
  let task = null;
  const draft = () => `trueup/ideal/${task.token}`;

  function fill(words) {
    text.focus();
    text.select();
    // Unlike setting the value, this can be undone with Ctrl+Z.
    if (!document.execCommand(words ? "insertText" : "delete", false, words)) text.value = words;
    text.setSelectionRange(0, 0);
    text.scrollTop = 0;
    keep();
  }

  function keep() {
    if (text.value) sessionStorage.setItem(draft(), text.value);
    else sessionStorage.removeItem(draft());
  }

  function send() {
    if (!text.value.trim()) return text.focus();
    save(task, text.value);
    sessionStorage.removeItem(draft());
    shut(dialog);
  }

  text.addEventListener("input", keep);
  dialog.querySelector(".tu-save").addEventListener("click", send);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) send();
  });
  return (target) => {
    task = target;
    text.value = sessionStorage.getItem(draft()) ?? "";
    const starts = task.answers.map(({ text }, place) => makeButton(`From ${letter(place)}`, () => fill(text)));
    from.replaceChildren(
      ...starts,
      makeButton("Empty", () => fill("")),
    );
    dialog.showModal();
    text.focus();
  };
}

// The dialog with the held-out prompts: a search, and a list to pick from by click or by arrow keys.

import { make, makeButton } from "./make.js";
import { request } from "./outbox.js";
import { seen } from "./visible.js";

const WAIT_MS = 150; // after a letter, before the server is asked

/** Returns a function that opens the dialog. onPick({prompt_id, messages}) is called with the prompt that is picked. */
export function setUpPicker(dialog, onPick) {
  const search = dialog.querySelector("input");
  const list = dialog.querySelector("ul");
  const status = dialog.querySelector("[role=status]");
  let timer = 0;
  let searches = 0;

  async function look() {
    const number = ++searches;
    const { status: code, body } = await request(`open/prompts?search=${encodeURIComponent(search.value.trim())}`);
    if (number !== searches) return; // a later search has been sent
    if (code !== 200) {
      status.textContent = "The server cannot read the prompts now.";
      return list.replaceChildren();
    }
    const { total, prompts } = body;
    status.textContent =
      total === prompts.length
        ? `${total} ${total === 1 ? "prompt" : "prompts"}`
        : `${prompts.length} of ${total} prompts`;
    list.replaceChildren(...prompts.map(row));
    list.scrollTo(0, 0);
  }

  function row(prompt) {
    const button = makeButton("", () => {
      dialog.close();
      onPick(prompt);
    });
    button.dir = "auto";
    button.append(...seen(prompt.messages.at(-1).content));
    const turns = prompt.messages.length > 1 ? `${prompt.messages.length} turns` : "";
    const about = [prompt.category, turns].filter(Boolean).join(" · ");
    if (about) button.append(make("small", {}, about));
    return make("li", {}, button);
  }

  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, WAIT_MS);
  });
  dialog.addEventListener("keydown", (event) => {
    const all = [search, ...list.querySelectorAll("button")];
    const at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.dataset.do === "close") dialog.close();
  });

  return () => {
    dialog.showModal();
    search.focus();
    search.select();
    look();
  };
}

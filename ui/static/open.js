// The page on which policies answer any prompt. start(element) runs once; `element` holds open.html.
// The server answers a prompt as a job. The job's number stands in the address, and its events are numbered, so a page
// that is loaded again, or loses its connection, goes on where it was. Text of models and people becomes text nodes,
// never markup.

import { Columns, SFT } from "./heat.js";
import { make } from "./make.js";
import { request } from "./outbox.js";
import { setUpPicker } from "./picker.js";
import { seen } from "./visible.js";

const NUMBERS = ["temperature", "max_new_tokens", "max_thinking_tokens", "top_k", "top_p", "seed"];
const LAST = { done: "Done", stopped: "Stopped", failed: "Failed" };

export function start(element) {
  const page = element.querySelector(".tu-open");
  const find = (selector) => page.querySelector(selector);
  const form = find(".tu-ask");
  const prompt = find("#open-prompt");
  const columns = new Columns(page);
  let run; // its policies, and the settings that they answered with
  let picked = null; // a held-out prompt: {prompt_id, messages}
  let context = []; // the turns before the one in the text field
  let job = null;
  let source = null; // the stream of its events

  // ---- Messages ---------------------------------------------------------------------------------------------------

  function say(text) {
    if (find(".tu-status").textContent !== text) find(".tu-status").textContent = text;
  }

  function alert(text) {
    find(".tu-problem").hidden = !text;
    find(".tu-problem").textContent = text;
  }

  function turn(state) {
    page.dataset.state = state;
    find("[data-do=run]").disabled = state !== "ready";
    find("[data-do=stop]").disabled = state !== "busy" || !job;
  }

  // ---- The prompt -------------------------------------------------------------------------------------------------

  function showPrompt(messages) {
    context = messages.slice(0, -1);
    prompt.value = messages.at(-1).content;
    find(".tu-context").hidden = context.length === 0;
    find(".tu-context ol").replaceChildren(
      ...context.map(({ role, content }) => {
        const who = { system: "Instructions", user: "Person", assistant: "Assistant" }[role];
        return make("li", {}, make("b", {}, who), make("div", { dir: "auto" }, ...seen(content)));
      }),
    );
  }

  /** The part of a request that names the prompt. */
  function promptBody() {
    if (picked && prompt.value === picked.messages.at(-1).content && context.length === picked.messages.length - 1) {
      return { prompt_id: picked.prompt_id };
    }
    if (context.length) return { conversation: [...context, { role: "user", content: prompt.value }] };
    return { prompt: prompt.value };
  }

  function showDecoding(decoding) {
    for (const name of NUMBERS) form.elements[name].value = decoding[name];
    showGreedy();
  }

  function showGreedy() {
    const { value } = form.elements.temperature;
    find(".tu-greedy").hidden = value === "" || Number(value) !== 0;
  }

  const boxes = () => [...page.querySelectorAll(".tu-checks input")];

  function showPolicies(checked) {
    find(".tu-checks").replaceChildren(
      ...run.policies.map(({ name, title, note }) => {
        const box = make("input", { type: "checkbox", value: name, checked: checked.includes(name) });
        return make("label", {}, box, make("span", {}, title, ...(note ? [make("small", {}, note)] : [])));
      }),
    );
  }

  // ---- The job ----------------------------------------------------------------------------------------------------

  async function answer() {
    if (page.dataset.state !== "ready" || !form.reportValidity()) return;
    turn("busy");
    alert("");
    say("Starting…");
    const decoding = Object.fromEntries(NUMBERS.map((name) => [name, Number(form.elements[name].value)]));
    const policies = boxes().filter((box) => box.checked);
    const { status, body } = await request("open/jobs", {
      ...promptBody(),
      ...decoding,
      policies: policies.map((box) => box.value),
    });
    if (status === 200) return follow(body.job);
    turn("ready");
    say("Not started");
    alert(refusal(status, body));
  }

  function refusal(status, body) {
    if (status === 401) return "Your session has ended: sign in again in another window, then press Run again.";
    const detail = typeof body?.detail === "string" ? body.detail : "";
    return status ? `Not started: ${detail || `the server refused (${status})`}.` : "The server does not answer.";
  }

  function follow(id) {
    job = id;
    history.replaceState(null, "", `#job=${id}`);
    turn("busy");
    source = new EventSource(`/api/v1/open/jobs/${id}/events`);
    source.onmessage = ({ data }) => on(JSON.parse(data));
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED) return say("The connection was lost. Trying again…");
      const { status } = await request("open/policies");
      if (status === 0 && job === id) return setTimeout(() => job === id && follow(id), 2000);
      ended("Lost");
      alert(
        status === 401
          ? "Your session has ended: sign in again, and load this page again."
          : "The server no longer has this prompt and its answers: it keeps only the last ones, and none over a restart.",
      );
    };
  }

  function ended(words) {
    source?.close();
    source = job = null;
    columns.rest();
    turn("ready");
    say(words);
  }

  /** Show an event of the job. After a lost connection the events go on after the last that arrived. */
  function on(event) {
    if (event.type === "accepted") {
      columns.begin(
        event.work.policies.map((name) => run.policies.find((one) => one.name === name) ?? { name, title: name }),
      );
      find(".tu-hint").hidden = true;
      find(".tu-legend").hidden = event.work.policies.every((name) => name === SFT); // nothing moves later
      showPrompt(event.work.prompt);
      showDecoding(event.work);
      boxes().forEach((box) => (box.checked = event.work.policies.includes(box.value)));
    } else if (event.type === "queued") {
      say(event.ahead ? `Waiting: ${event.ahead} before this one` : "Starting…");
    } else if (event.type === "loading") say(`Loading ${event.what}…`);
    else if (event.type === "step") {
      columns.step(event);
      say("Answering…");
    } else if (event.type === "answer") {
      columns.answer(event);
      if (columns.whole) say("Reading the answers again: scores, and what alignment changed…");
    } else if (event.type === "score") columns.score(event);
    else if (event.type === "ratios") columns.ratios(event);
    else if (event.type in LAST) {
      ended(LAST[event.type]);
      if (event.type === "failed") alert(`${event.message[0].toUpperCase()}${event.message.slice(1)}`);
    }
  }

  // ---- Actions ----------------------------------------------------------------------------------------------------

  const openPicker = setUpPicker(find(".tu-picker"), (heldout) => {
    picked = heldout;
    showPrompt(picked.messages);
    prompt.focus();
  });

  const does = {
    run: answer,
    stop: async () => {
      say("Stopping after this token…");
      find("[data-do=stop]").disabled = true;
      const { status } = await request(`open/jobs/${job}/stop`, {});
      if (status !== 200 && job) {
        find("[data-do=stop]").disabled = false;
        alert("The server did not stop the answers; try again.");
      }
    },
    pick: openPicker,
    forget: () => {
      showPrompt([{ content: prompt.value }]);
      prompt.focus(); // the button is gone
    },
    seed: () => (form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 12),
  };

  page.addEventListener("click", (event) => does[event.target.closest("button")?.dataset.do]?.());
  form.elements.temperature.addEventListener("input", showGreedy);
  form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a number field
  document.addEventListener("keydown", (event) => {
    const asks = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat;
    if (asks && !page.querySelector("dialog[open]")) answer();
  });
  find("[data-do=scale]").addEventListener("change", (event) => columns.rescale(Number(event.target.value)));
  find("[data-do=colours]").addEventListener(
    "change",
    (event) => (page.dataset.colours = event.target.checked ? "on" : "off"),
  );
  page.dataset.colours = "on";

  // ---- Start ------------------------------------------------------------------------------------------------------

  async function begin() {
    const { status, body } = await request("open/policies");
    if (status !== 200) {
      say("");
      if (status === 401) return alert("Your session has ended: sign in again.");
      if (status) return alert(body?.detail ?? `The server refused (${status}). Load the page again.`);
      say("The server does not answer. Trying again…");
      return setTimeout(begin, 2000);
    }
    run = body;
    const names = run.policies.map(({ name }) => name);
    showPolicies(names.includes("aligned") ? [SFT, "aligned"] : ["base", SFT]);
    showDecoding(run.decoding);
    find("[data-for=reasoning]").hidden = !run.reasons;
    if (run.context) form.elements.max_new_tokens.max = Math.min(run.context - 1, 4096);
    columns.rescale(Number(find("[data-do=scale]").value));
    turn("ready");
    say("");
    const earlier = /^#job=(\w+)$/.exec(location.hash);
    if (earlier) follow(earlier[1]);
  }

  begin();
}

// The labelling page. Runs once, with `element` holding label.html.
// A press belongs to the token that was on screen when it was made. One press is in flight at a time, under a UUID that
// is sent again until the server has confirmed it, so a lost answer can neither lose a label nor make two.

const SETTLE_MS = 250; // nobody judges a new pair faster: what comes earlier was meant for the last one
const RETRY_MS = [300, 1000, 2000, 4000, 8000];
const KEYS = { 1: "a", 2: "b", 0: "tie", t: "tie", s: "skip", u: "undo" };
const SAID = { a: "A saved", b: "B saved", tie: "Tie saved", skip: "Skipped" };

const page = element.querySelector(".tu-label");
const find = (selector) => page.querySelector(selector);
const buttons = [...page.querySelectorAll("[data-do]")];
const texts = [...page.querySelectorAll(".tu-answer .tu-text")];
const keysOn = find(".tu-foot input");
const status = find("[role=status]");

let task = null;
let busy = true;
let settled = 0;

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function show(next) {
  task = next;
  const { labelled, skipped, total } = task.progress;
  find(".tu-guideline").textContent = task.guideline;
  find(".tu-count").textContent = `${labelled}/${total} labelled` + (skipped ? `, ${skipped} skipped` : "");
  find("progress").max = Math.max(total, 1);
  find("progress").value = labelled + skipped;
  const open = task.token !== null;
  find(".tu-prompt").hidden = find(".tu-answers").hidden = !open;
  find(".tu-done").hidden = open;
  if (open) {
    find(".tu-prompt").innerHTML = task.prompt; // rendered and escaped on the server
    texts.forEach((text, place) => (text.innerHTML = task.answers[place]));
    for (const scrolled of [find(".tu-work"), find(".tu-prompt"), ...texts]) scrolled.scrollTop = 0;
  } else {
    find(".tu-done h2").textContent = total ? "All pairs are answered" : "There is nothing to label yet";
    find(".tu-done p").textContent = total
      ? `${labelled} labelled, ${skipped} skipped. Undo takes the last one back. You can close this page.`
      : "The campaign has no pairs of answers that differ.";
  }
  settled = performance.now() + SETTLE_MS;
  page.dataset.state = "settling";
  setTimeout(() => (page.dataset.state = open ? "ready" : "done"), SETTLE_MS);
}

function enable() {
  for (const button of buttons) {
    const undo = button.dataset.do === "undo";
    button.disabled = undo ? task.progress.labelled + task.progress.skipped === 0 : task.token === null;
    button.classList.remove("pressed");
  }
}

async function call(path, body) {
  for (let attempt = 0; ; attempt++) {
    try {
      const response = await fetch(`/api/v1/${path}`, {
        method: body ? "POST" : "GET",
        headers: { "Content-Type": "application/json" },
        body: body && JSON.stringify(body),
        cache: "no-store",
      });
      if (response.status < 500) return { status: response.status, body: await response.json() };
    } catch (error) {
      // No connection, or an answer that broke off: the same request again.
    }
    say(body ? "Not saved yet: the server does not answer. Trying again…" : "The server does not answer. Trying again…", true);
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
}

async function act(name) {
  if (busy || !task || performance.now() < settled) return;
  if (name !== "undo" && task.token === null) return;
  busy = true;
  find(`[data-do=${name}]`).classList.add("pressed");
  const press = { client_uuid: uuid() };
  const { status, body } =
    name === "undo" ? await call("undo", press) : await call("labels", { ...press, token: task.token, choice: name });
  if (status === 200 || status === 409) {
    show(body);
    if (status === 409) say("That pair was answered in another window; nothing was recorded here.", true);
    else if (name === "undo") say(body.changed ? "Undone: here it is again" : "Nothing to undo");
    else say(SAID[name]);
  } else {
    say(`Not saved: the server refused (${status}). Reload the page.`, true);
  }
  enable();
  busy = false;
}

for (const button of buttons) {
  button.addEventListener("click", (event) => {
    if (event.detail < 2) act(button.dataset.do); // the second click of a double click is no second label
  });
}

document.addEventListener("keydown", (event) => {
  const onButton = event.target.closest?.("button");
  if (event.repeat && onButton && event.key === "Enter") event.preventDefault();
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !keysOn.checked) return;
  if (event.target.closest?.("textarea, select, [contenteditable], input:not([type=checkbox])")) return;
  const name = KEYS[event.key.toLowerCase()];
  if (name) {
    event.preventDefault();
    act(name);
  }
});

keysOn.checked = localStorage.getItem("trueup-keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("trueup-keys", keysOn.checked ? "on" : "off"));

call("task").then(({ status, body }) => {
  if (status !== 200) return say(`The server refused (${status}).`, true);
  show(body);
  enable();
  say("");
  busy = false;
});

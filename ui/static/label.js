// The labelling page, and the voting page. start(element, under) runs once: `element` holds label.html, and `under` is
// the part of the API that the page uses ("" for labels, "votes/" for votes on a comparison).
// A press counts for the task on the screen at that moment. It goes into the outbox, and the page shows the next of the
// tasks that the server sent in advance; the response only adds further ones. A vote waits for its response, which
// names the policy of each answer. A press of the practice round waits too, for the known answer.

import { isOpen, setUpDialogs, setUpEditor, setUpHelp, showMirror } from "./dialogs.js";
import { GRADED, Keys, show as keyName, PLAIN } from "./keys.js";
import { make } from "./make.js";
import { Outbox, request } from "./outbox.js";
import { append, back, isWhole, letter, rank, Strip } from "./ranking.js";
import { View } from "./view.js";
import { NOT_WHILE_VOTING, nameOf, revealed, standing, WORDS } from "./votes.js";

const SETTLE_MS = 150; // nobody judges a new pair faster: an earlier press was meant for the last one
const HEARTBEAT_MS = 60_000;
const LOOK_AGAIN_MS = 30_000; // when there is nothing to do: somebody may have given a pair back
const MORE_COME_MS = 2_000; // when the server expects further pairs
const BREAK_MS = 25 * 60_000;
const PAUSE_MS = 5 * 60_000; // a pause this long is a break
const PACE_OF = 20;

const QUICK = ["skip", "flag", "undo"];
const MORE = ["note", "write", "diff", "raw"];
const SIDES = ["a", "tie", "b"];

export function start(element, under = "") {
  const page = element.querySelector(".tu-label");
  const find = (selector) => page.querySelector(selector);
  const view = new View(page);
  const keys = new Keys();
  const strip = new Strip(find(".tu-strip"), rankAs);
  const note = find(".tu-note textarea");
  const ask = (path, body) => request(under + path, body);
  const words = WORDS[under ? "vote" : "label"];
  const editor = setUpEditor(find(".tu-editor"), demonstrate);
  const openHelp = setUpHelp(find(".tu-help"), keys, labelKeys);
  setUpDialogs(page);

  let settings; // those of the campaign
  let state; // that of this person's work: work, practice, waiting, done, failed_practice
  let outbox;
  let tasks = []; // those that wait by the last response, without those judged since
  let task = null; // the one on the screen
  let phase = "loading"; // settling, ready, checking (practice), feedback, undoing, idle (no task)
  let settled = 0;
  let held = null; // a judgement that waits for its reason
  let ranked = { tiers: [], tie: false };
  let criteria = {};
  const seen = new Map(); // token: task; for a label that is taken back before it was sent
  const answered = new Set(); // tokens; a pair that is taken back comes with a new one
  const counts = { mine: 0, skipped: 0, total: 0 };
  const pressed = []; // the count that each press raised, for undo
  const paces = []; // the seconds of the last labels
  const watch = stopwatch();
  let slow = 0;
  let working = { since: 0, last: 0 };

  // ---- Messages ---------------------------------------------------------------------------------------------------

  function say(text, kind = "") {
    find(".tu-say").textContent = text;
    find(".tu-say").className = `tu-say ${kind}`;
  }

  function alert(text, link = false) {
    find(".tu-alert").hidden = !text;
    find(".tu-alert p").textContent = text;
    find(".tu-alert a").hidden = !link;
  }

  function saved() {
    const waiting = outbox.labels.length;
    const many = `${waiting} ${waiting === 1 ? words.one : words.many}`;
    const what = waiting ? `${many} waiting` : "Waiting";
    const where = outbox.stored ? "kept on this computer" : "keep this page open";
    const stuck = outbox.failing || outbox.stopped;
    const now = stuck ? "waiting" : outbox.entries.length ? "saving" : "yes";
    find(".tu-saved").dataset.saved = now;
    clearTimeout(slow);
    // A press is usually sent within milliseconds: for those the text must not flicker, or be read out.
    if (now === "saving") slow = setTimeout(() => (find(".tu-saved").textContent = "Saving…"), 500);
    else find(".tu-saved").textContent = stuck && outbox.entries.length ? `${what}, ${where}` : "Saved";
    if (phase === "undoing" && stuck) ready();
    if (phase === "idle") showEnd();
  }

  function showCounts() {
    const { mine, skipped, total } = counts;
    const practice = state === "practice" && counts.practice;
    const at = practice ? Math.min(practice.done + (phase === "feedback" ? 0 : 1), practice.total) : mine;
    const of = Math.max(practice ? practice.total : total, at, 1);
    find(".tu-count").textContent = practice
      ? `Practice ${at} of ${of}`
      : `${mine} of ${of} ${words.counted}` + (skipped ? `, ${skipped} skipped` : "");
    find("progress").max = of;
    find("progress").value = practice ? practice.done : Math.min(mine + skipped, of);
    const seconds = paces.reduce((sum, one) => sum + one, 0);
    const perHour = paces.length >= 3 && seconds ? (3600 * paces.length) / seconds : null;
    const minutes = perHour && Math.ceil((60 * Math.max(total - mine - skipped, 0)) / perHour);
    const left = minutes && (minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`);
    find(".tu-pace").textContent = perHour
      ? `${Math.round(perHour)} an hour` + (left && !practice ? ` · about ${left} left` : "")
      : "";
  }

  // ---- Tasks ------------------------------------------------------------------------------------------------------

  /** Use the tasks of a response; with `counted` its counts too. Between loads the page counts its own presses, and
   *  those that wait in the outbox are among them. */
  function take(body, counted = false) {
    tasks = body.tasks.filter(({ token }) => !answered.has(token));
    for (const one of body.tasks) seen.set(one.token, one);
    counts.practice = body.progress.practice;
    const begins = state !== body.state; // such as work after practice
    state = body.state;
    if (counted || begins) {
      const { mine, skipped, left } = body.progress;
      const unsent = outbox.labels.filter((entry) => !["skip", "flag"].includes(entry.body.choice)).length;
      counts.mine = mine + unsent;
      counts.skipped = skipped + outbox.labels.length - unsent;
      counts.total = Math.max(mine + skipped + left, counts.mine + counts.skipped);
    }
  }

  function advance() {
    tasks = tasks.filter(({ token }) => !answered.has(token));
    show(tasks[0] ?? null);
  }

  function show(next) {
    task = next;
    held = null;
    criteria = {};
    ranked = { tiers: [], tie: false };
    closeNote();
    find(".tu-feedback").hidden = true;
    view.best([]);
    view.ranks([]);
    const open = task !== null;
    find(".tu-prompt").hidden = find(".tu-answers").hidden = !open;
    find(".tu-done").hidden = open;
    if (open) view.show(task);
    setUpBar(view.texts?.length ?? 2);
    for (const one of page.querySelectorAll(".tu-bar [data-do]")) one.disabled = !open && one.dataset.do !== "undo";
    if (open) {
      watch.start();
      settled = performance.now() + SETTLE_MS;
      turn("settling");
      setTimeout(() => task === next && phase === "settling" && turn("ready"), SETTLE_MS);
    } else {
      turn("idle");
      showEnd();
    }
    showRanks();
    showCriteria();
    showCounts();
    labelKeys();
  }

  function turn(next) {
    phase = next;
    page.dataset.state = next === "idle" ? "done" : next;
  }

  function ready() {
    if (task) turn("ready");
    else turn("idle");
  }

  function showEnd() {
    const waiting = outbox.entries.length;
    const { mine, skipped, total, practice } = counts;
    let [title, text] = [`All pairs are ${words.counted}`, `${mine} ${words.counted}, ${skipped} skipped. `];
    if (!settings.reveals) text += "Undo takes the last one back. ";
    text += "You can close this page.";
    if (state === "failed_practice") {
      title = "The practice round was not passed";
      const right = practice ? `${practice.right} of ${practice.total} labels were as expected. ` : "";
      text = `${right}Thank you for trying. Whoever runs this campaign can tell you how to go on.`;
    } else if (state === "waiting" && !waiting) {
      title = "The next pair is on its way";
      text = "The model is still writing answers. This page goes on by itself when there is a pair for you.";
    } else if (state !== "done" || waiting) {
      title = waiting ? "Waiting for the connection" : "One moment";
      text = waiting
        ? `The next pairs come as soon as your ${words.many} have been sent. They are kept on this computer.`
        : "";
    } else if (total === 0) {
      [title, text] = [`There is nothing to ${words.to} yet`, "This page looks again every half minute."];
    }
    find(".tu-done h2").textContent = title;
    find(".tu-done p").textContent = text;
    if (state === "done" && total) showStanding();
  }

  // ---- Presses ----------------------------------------------------------------------------------------------------

  /** Whether a press counts now; if not, the page says why. */
  function free() {
    if (phase === "idle" || phase === "loading") return false;
    if (phase === "checking" || phase === "undoing") return refuse("One moment: the server has not answered yet");
    if (phase === "feedback") return refuse("Go on to the next pair first");
    if (performance.now() < settled) return refuse("Not counted: this pair has only just come");
    return true;
  }

  function refuse(text) {
    say(text, "warn");
    find(".tu-bar").animate?.([{ opacity: 0.55 }, { opacity: 1 }], { duration: 200 }); // a blink moves nothing
    return false;
  }

  /** Send a judgement, {choice} or {order}; `name` is its text for people. */
  function label(judgement, name, device) {
    if (!free()) return;
    const passes = judgement.choice === "skip" || judgement.choice === "flag";
    if (task.wants_rationale && !passes && !note.value.trim()) {
      held = { judgement, name };
      mark(judgement.choice);
      openNote(`${name}: why? This pair needs a reason. Enter sends it.`);
      return;
    }
    const entry = { token: task.token, ...judgement, seconds: watch.seconds(), device };
    if (note.value.trim()) entry.note = note.value;
    if (!passes && Object.keys(criteria).length) entry.criteria = criteria;
    note.value = "";
    answered.add(task.token);
    count(passes ? "skipped" : "mine", entry.seconds);
    const final = task.practice || settings.reveals;
    say(`${name}${final ? "" : ` · ${keyName(keys.key("undo") ?? "undo")} takes it back`}`);
    if (task.practice || (settings.reveals && !passes)) {
      turn("checking");
      mark(judgement.choice);
    } else advance();
    outbox.add("labels", entry, name);
    nudge();
  }

  function count(kind, seconds) {
    counts[kind] += state === "practice" ? 0 : 1;
    if (state !== "practice") pressed.push(kind);
    if (kind === "mine") paces.push(seconds);
    if (paces.length > PACE_OF) paces.shift();
  }

  function uncount() {
    const kind = pressed.pop();
    if (kind) counts[kind] -= 1;
    return kind !== undefined;
  }

  function undo() {
    if (phase === "loading" || phase === "settling") return phase === "settling" && free();
    if (["checking", "undoing", "feedback"].includes(phase)) return free();
    const entry = outbox.takeBack();
    if (!entry) {
      turn("undoing");
      outbox.add("undo", {}, "Undo");
      return;
    }
    answered.delete(entry.body.token);
    uncount();
    const again = seen.get(entry.body.token);
    if (!again) return look(); // the press is from an earlier page: the server still has its task
    tasks.unshift(again);
    show(again);
    note.value = entry.body.note ?? "";
    say(`Taken back: ${entry.name}`);
  }

  function demonstrate({ token }, text) {
    outbox.add("demonstrations", { token, text }, "The ideal answer");
    say("The ideal answer is kept; the pair is still open");
  }

  /** Another window took this press back, or sent it: only the server knows what waits now. */
  function onGone(entry) {
    answered.delete(entry.body.token);
    setTimeout(look);
  }

  /** The response to an entry of the outbox. False: keep the entry, and send nothing more for now. */
  function onReply(entry, status, body) {
    if (status === 401) {
      return stopped(
        `Your session has ended. Your ${words.many} are kept on this computer, and sent when you have signed in.`,
        true,
      );
    }
    if (status === 409 && body.settings.me !== settings.me) {
      return stopped(
        `Somebody else has signed in here. The ${words.many} of ${settings.me} are kept until they are back.`,
      );
    }
    if (status === 422) {
      const problem = typeof body.detail === "string" ? body.detail : "it was not understood";
      alert(`Not recorded: “${entry.name}”. The server says: ${problem}`);
      if (entry.path === "labels") retract(entry);
      return true;
    }
    if (status === 409 && entry.path === "labels") {
      alert(`Not recorded: “${entry.name}”. The pair was ${words.counted} in another window, or has left the queue.`);
      uncount();
    }
    if (status === 409 && entry.path === "demonstrations")
      alert("The ideal answer was not recorded: its pair is gone.");
    if (entry.path === "demonstrations" && status === 200) return true;
    take(body, status === 409);
    if (entry.path === "undo" && status === 200) undone(body);
    else if (body.label?.kind === "late") alert("Saved, but it does not count: somebody else has this pair now.");
    const here = task?.token === entry.body.token;
    if (body.feedback && here) showFeedback(body.feedback);
    else if (body.reveal && here) showReveal(body.reveal, body.label.choice);
    else if (phase === "checking" || (status === 409 && !tasks.includes(task)) || !task) advance();
    else showCounts();
    return true;
  }

  function stopped(text, link = false) {
    outbox.stopped = true;
    alert(text, link);
    return false;
  }

  /** The server refused a label, so its task still waits. */
  function retract(entry) {
    answered.delete(entry.body.token);
    uncount();
    note.value = entry.body.note ?? note.value;
    const again = seen.get(entry.body.token);
    if (again) tasks = [again, ...tasks.filter((one) => one !== again)];
    if (phase === "checking" || !task) advance();
    else showCounts();
  }

  function undone(body) {
    if (!body.undone) {
      ready();
      return say("Nothing to undo");
    }
    if (!uncount()) take(body, true);
    if (phase !== "undoing" && task) return say("Taken back; it comes after this pair"); // the person went on meanwhile
    show(tasks[0] ?? null);
    say("Taken back: here it is again");
  }

  // ---- Practice ---------------------------------------------------------------------------------------------------

  function showFeedback({ right, best, explanation }) {
    const tiers = Array.isArray(best) ? best : null;
    const order = tiers?.map((tier) => tier.map(letter).join(" = ")).join(" > ");
    const known = tiers
      ? `The known order is ${order}.`
      : best === "tie"
        ? "Both are equally good."
        : `${best.toUpperCase()} is better.`;
    view.best(tiers ? tiers[0] : best === "tie" ? [0, 1] : [best === "a" ? 0 : 1]);
    find(".tu-feedback").hidden = false;
    find(".tu-feedback").dataset.right = right;
    find(".tu-feedback p").textContent = `${right ? "As expected." : "Not as expected."} ${known} ${explanation ?? ""}`;
    turn("feedback");
    showCounts();
    find("[data-do=next]").focus();
  }

  // ---- Votes ------------------------------------------------------------------------------------------------------

  function showReveal(reveal, choice) {
    view.ranks([nameOf(reveal.a), nameOf(reveal.b)]);
    const preferred = ["tie", "both_bad"].includes(choice) ? [] : [choice.startsWith("a") ? 0 : 1];
    view.best(preferred);
    find(".tu-feedback").hidden = false;
    find(".tu-feedback p").textContent = revealed(reveal, choice);
    turn("feedback");
    showStanding();
    showCounts();
    find("[data-do=next]").focus();
  }

  /** Show the win rate so far, between pairs only: a person who sees it beside a pair may follow it. */
  async function showStanding() {
    if (!settings.sees_figures) return;
    const { status, body } = await request("admin/votes");
    for (const one of page.querySelectorAll(".tu-standing")) {
      one.hidden = status !== 200;
      if (status === 200) one.textContent = standing(body);
    }
  }

  // ---- Ranking ----------------------------------------------------------------------------------------------------

  function rankAs(tiers) {
    ranked = { tiers, tie: false };
    showRanks();
  }

  function pressLetter(place, tie) {
    if (free()) rankAs(append(ranked.tiers, place, tie || ranked.tie));
  }

  function submit(device) {
    const count = task.answers.length;
    if (!isWhole(ranked.tiers, count))
      return refuse(`${count - ranked.tiers.flat().length} answers are not ranked yet`);
    const order = ranked.tiers.map((tier) => [...tier]);
    label({ order }, order.map((tier) => tier.map(letter).join(" = ")).join(" > "), device);
  }

  function showRanks() {
    if (!task || task.answers.length < 3) return;
    const count = task.answers.length;
    strip.show(ranked.tiers, count);
    view.ranks(task.answers.map((_, place) => rank(ranked.tiers, place)));
    find("[data-do=submit]")?.classList.toggle("whole", isWhole(ranked.tiers, count));
    find("[data-do=with]")?.setAttribute("aria-pressed", ranked.tie);
  }

  // ---- The bar ----------------------------------------------------------------------------------------------------

  const button = (id, inner) => `<button type="button" data-do="${id}">${inner}</button>`;

  function setUpBar(answers) {
    const ranking = answers > 2;
    keys.of(answers, settings.scale, settings.criteria, without());
    mark(null);
    if (page.dataset.bar === `${ranking}`) return;
    page.dataset.bar = ranking;
    find(".tu-choices").hidden = ranking;
    find(".tu-ranking").hidden = !ranking;
    find(".tu-ranking")
      .querySelectorAll("button[data-do]")
      .forEach((old) => old.remove());
    const steps = [
      ["back", "Back"],
      ["with", "Tie"],
      ["submit", "Send"],
    ].map(([id, name]) => button(id, `<b>${name}</b>`));
    if (ranking) find(".tu-ranking").insertAdjacentHTML("beforeend", steps.join(""));
    const choices = settings.scale === "graded" ? GRADED : PLAIN;
    const part = (ids) =>
      choices
        .filter(([id]) => ids(id))
        .map(([id, name]) => button(id, choiceText(name)))
        .join("");
    find(".tu-choices").dataset.scale = settings.scale;
    find(".tu-choices").innerHTML =
      `<div class="tu-side">${part((id) => id.startsWith("a"))}</div>` +
      `<div class="tu-middle">${part((id) => id === "tie" || id === "both_bad")}</div>` +
      `<div class="tu-side">${part((id) => id.startsWith("b") && id !== "both_bad")}</div>`;
    const tool = (id) => {
      const action = keys.actions.find((one) => one.id === id);
      return action ? button(id, shortened(action.name)) : "";
    };
    find(".tu-quick").innerHTML = QUICK.map(tool).join("");
    find(".tu-more").innerHTML = MORE.map(tool).join("");
    find(".tu-criteria").hidden = ranking || settings.criteria.length === 0;
  }

  const without = () => (settings.reveals ? NOT_WHILE_VOTING : []);

  function choiceText(name) {
    const [, side, how] = /^([AB]) (.*)$/.exec(name) ?? [null, "", name];
    return side ? `<b>${side}</b> <span>${shortened(how)}</span>` : `<span>${how}</span>`;
  }

  /** The name; a narrow window leaves out the marked part. */
  const shortened = (name) => name.replace(/(?<=much|slightly|Write|Raw)( \w+)$|(?<=Diff)(erences)$/, "<i>$&</i>");

  /** Print the keys on the buttons, and tell assistive technology. */
  function labelKeys() {
    for (const element of page.querySelectorAll("button[data-do]")) {
      const key = keys.on ? keys.key(element.dataset.do) : null;
      if (element.dataset.key === `${key}`) continue;
      element.dataset.key = key;
      element.querySelector("kbd")?.remove();
      if (key === null) element.removeAttribute("aria-keyshortcuts");
      else {
        element.setAttribute("aria-keyshortcuts", key.length === 1 ? key.toUpperCase() : key);
        const mark = make("kbd", {}, keyName(key));
        mark.setAttribute("aria-hidden", "true");
        if (!["prompt", "help", "next"].includes(element.dataset.do)) element.prepend(mark);
      }
    }
    for (const option of ["raw", "diff"])
      find(`[data-do=${option}]`)?.setAttribute("aria-pressed", view.options[option]);
    find("[data-do=note]")?.classList.toggle("filled", note.value.trim() !== "");
    find(".tu-bar").classList.toggle("wants-note", task?.wants_rationale ?? false);
  }

  function mark(choice) {
    page.querySelectorAll(".tu-choices .held").forEach((old) => old.classList.remove("held"));
    if (choice) find(`.tu-choices [data-do=${choice}]`)?.classList.add("held");
  }

  function showCriteria() {
    if (!settings.criteria.length) return;
    const side = (name, i) => (which) =>
      `<button type="button" data-criterion="${i}" data-side="${which}" aria-pressed="${criteria[name] === which}">` +
      `${{ a: "A", b: "B", tie: "=" }[which]}</button>`;
    const box = find(".tu-criteria");
    if (!box.children.length) {
      box.innerHTML = settings.criteria
        .map((name, i) => `<div role="group"><span></span>${SIDES.map(side(name, i)).join("")}</div>`)
        .join("");
      settings.criteria.forEach((name, i) => {
        box.children[i].setAttribute("aria-label", name);
        box.children[i].querySelector("span").textContent = name;
      });
    }
    settings.criteria.forEach((name, i) => {
      const key = keys.on && keys.key(`criterion-${i}`);
      box.children[i].title = key ? `${keyName(key)} goes through A, equal, B` : "";
      box.children[i].querySelectorAll("button").forEach((one) => {
        one.setAttribute("aria-pressed", criteria[name] === one.dataset.side);
      });
    });
  }

  function judge(i, side) {
    if (!free()) return;
    const name = settings.criteria[i];
    const next = side ?? [...SIDES, undefined][(SIDES.indexOf(criteria[name]) + 1) % 4];
    if (next === undefined || (side && criteria[name] === side)) delete criteria[name];
    else criteria[name] = next;
    showCriteria();
  }

  // ---- Note -------------------------------------------------------------------------------------------------------

  function openNote(why) {
    if (!task) return;
    find(".tu-note-why").textContent =
      why ?? (task.wants_rationale ? "This pair needs a reason" : `A note, stored with your ${words.one} on this pair`);
    find(".tu-note").hidden = false;
    note.focus();
  }

  function closeNote() {
    const focused = find(".tu-note").contains(document.activeElement);
    find(".tu-note").hidden = true;
    held = null;
    mark(null);
    labelKeys();
    if (focused) find(".tu-work").focus({ preventScroll: true });
  }

  function noteDone() {
    const waiting = held;
    if (waiting && !note.value.trim()) return note.focus();
    closeNote();
    if (waiting) label(waiting.judgement, waiting.name, "key");
  }

  note.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeNote();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !event.repeat) noteDone();
    else return;
    event.preventDefault();
  });
  find(".tu-note .tu-close").addEventListener("click", noteDone);

  // ---- Actions ----------------------------------------------------------------------------------------------------

  const named = (id) => keys.actions.find((action) => action.id === id)?.name ?? id;

  const does = {
    undo,
    note: () => openNote(),
    write: () => task && editor(task),
    diff: () => task && say(view.toggle("diff") ?? "Differences are hidden"),
    raw: () =>
      task && (view.toggle("raw"), say(view.options.raw ? "Text as the model wrote it" : "Text with its formatting")),
    prompt: () => view.resize(),
    guideline: () => find(".tu-guide").showModal(),
    mirror: async () => {
      const { status, body } = await ask("mirror");
      if (!isOpen(page)) showMirror(find(".tu-mirror"), status === 200 ? body : null, words);
    },
    help: openHelp,
    next: advance,
    with: () => free() && ((ranked.tie = !ranked.tie), showRanks()),
    back: () => free() && rankAs(back(ranked.tiers)),
    submit: (device) => free() && submit(device),
  };

  function act(id, device) {
    if (does[id]) {
      if (id !== "next" || phase === "feedback") does[id](device);
    } else if (id.startsWith("criterion-")) judge(Number(id.slice("criterion-".length)));
    else label({ choice: id }, named(id), device);
    labelKeys();
  }

  page.addEventListener("click", (event) => {
    const pressedButton = event.target.closest("button");
    if (pressedButton?.dataset.criterion)
      return judge(Number(pressedButton.dataset.criterion), pressedButton.dataset.side);
    const id = pressedButton?.dataset.do;
    if (!id) return;
    const labels = pressedButton.closest(".tu-choices") || ["skip", "flag", "submit"].includes(id);
    if (event.detail > 1 && labels) return refuse("Not counted: the second click of a double click");
    act(id, { touch: "touch", pen: "touch" }[event.pointerType] ?? (event.detail ? "click" : "key"));
  });

  document.addEventListener("keydown", (event) => {
    const onControl = event.target.closest?.("button, a, summary");
    if (event.repeat && onControl && event.key === "Enter") event.preventDefault();
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest?.("textarea, select, [contenteditable], input") || isOpen(page)) return;
    if (!settings || (onControl && [" ", "Enter"].includes(event.key))) return;
    if (phase === "feedback" && [" ", "Enter"].includes(event.key)) {
      event.preventDefault();
      return advance();
    }
    if (!keys.on) return;
    const press = keys.find(event);
    if (!press) return;
    event.preventDefault();
    if (press.letter !== undefined) pressLetter(press.letter, press.tie);
    else act(press.id, "key");
  });

  find(".tu-alert .tu-close").addEventListener("click", () => alert(""));

  // ---- Time -------------------------------------------------------------------------------------------------------

  function nudge() {
    const now = Date.now();
    const rested = now - working.last > PAUSE_MS;
    working = { since: rested ? now : working.since, last: now };
    find(".tu-nudge").hidden = now - working.since < BREAK_MS;
    if (find(".tu-nudge").hidden || find(".tu-nudge button")) return;
    find(".tu-nudge").innerHTML =
      `<p>You have ${words.did} for 25 minutes. A short break keeps your judgement fresh; nothing gets lost.</p>` +
      "<button type='button'>OK</button>";
    find(".tu-nudge button").addEventListener("click", () => {
      working.since = Date.now();
      find(".tu-nudge").replaceChildren();
      find(".tu-nudge").hidden = true;
    });
  }

  /** Ask the server for the tasks that wait. */
  async function look() {
    const { status, body } = await ask("tasks");
    if (status === 401) return outbox.entries.length || stopped("Your session has ended.", true);
    if (status !== 200 || body.settings.me !== settings.me || outbox.running || isBusy()) return;
    take(body, true);
    if (!task || !tasks.some(({ token }) => token === task.token)) {
      if (task) alert("Somebody else has the pair that was here now. Nothing of yours is lost.");
      advance();
    } else showCounts();
  }

  const isBusy = () => ["checking", "feedback", "undoing"].includes(phase) || held !== null;

  let hiddenAt = 0;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenAt = Date.now();
    else if (settings) {
      outbox.resume(); // they may have signed in, in another window
      if (Date.now() - hiddenAt > HEARTBEAT_MS) look();
    }
  });
  setInterval(() => !document.hidden && settings && ask("heartbeat", {}), HEARTBEAT_MS);
  setInterval(() => !document.hidden && settings && phase === "idle" && look(), LOOK_AGAIN_MS);
  setInterval(() => !document.hidden && state === "waiting" && phase === "idle" && look(), MORE_COME_MS);
  addEventListener("beforeunload", (event) => outbox?.entries.length && !outbox.stored && event.preventDefault());

  // ---- Start ------------------------------------------------------------------------------------------------------

  async function begin() {
    for (let wait = 300; ; wait = Math.min(2 * wait, 8000)) {
      const { status, body } = await ask("tasks");
      if (status === 200) return open(body);
      if (status === 401) return alert("Your session has ended.", true);
      if (status && status !== 503)
        return alert(`The server refused (${status}): ${body.detail ?? "reload the page"}.`);
      say(`${body?.detail ?? "The server does not answer"}. Trying again…`, "warn");
      await new Promise((done) => setTimeout(done, wait));
    }
  }

  function open(body) {
    settings = body.settings;
    find(".tu-guideline").textContent = settings.guideline_line || "Which answer is better?";
    find(".tu-guide .tu-text").innerHTML = settings.guideline_html; // rendered and made safe on the server
    keys.of(2, settings.scale, settings.criteria, without());
    if (settings.reveals) wordAsVotes();
    outbox = new Outbox(`${settings.campaign} ${settings.me}`, { under, onReply, onGone, onChange: saved });
    outbox.labels.forEach((entry) => answered.add(entry.body.token)); // those that an earlier page left
    say(settings.reveals ? "A vote is final: after it the page names the policy of each answer" : "");
    take(body, true);
    advance();
    saved();
    outbox.resume();
  }

  function wordAsVotes() {
    page.dataset.mode = "vote";
    find(".tu-alert a").href = "/login?next=/vote";
    find(".tu-feedback").setAttribute("aria-label", "Policies of the answers");
    find(".tu-onward").hidden = !settings.sees_figures;
    find(".tu-mirror").setAttribute("aria-label", "How you vote");
    find(".tu-mirror h2").textContent = "How you vote";
    find(".tu-help .tu-lead").textContent =
      "One key, or one click, is one vote. After it the page says which answer is from which policy, so a vote is " +
      "final. Enter goes on to the next pair.";
  }

  begin();
}

/** Counts the seconds since start() in which the page was visible. */
function stopwatch() {
  let [before, since] = [0, performance.now()];
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) before += performance.now() - since;
    since = performance.now();
  });
  return {
    start: () => ([before, since] = [0, performance.now()]),
    seconds: () => Math.round(before + (document.hidden ? 0 : performance.now() - since)) / 1000,
  };
}

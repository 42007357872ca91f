// The admin's page. It runs once, with `element` around .tu-admin. While the page is visible it fetches the summary
// every five seconds and replaces the parts that have changed. Focus, scrolling, open details and a table's order stay.

const EVERY_MS = 5000;
const page = element.querySelector(".tu-admin");
const status = page.querySelector("[role=status]");
const parts = new Map(); // part: its HTML as the server sent it
const openDetails = new Set();
let sort = null; // {table, key, down}
let timer = 0;

function say(text) {
  status.textContent = text;
  page.classList.toggle("stale", text !== "");
}

function put(next) {
  const name = next.dataset.part;
  const html = next.innerHTML;
  if (parts.get(name) === html) return;
  parts.set(name, html);
  const old = page.querySelector(`:scope > [data-part=${name}]`);
  const keep = old?.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  const offsets = new Map();
  old?.querySelectorAll(".tu-scroll").forEach((box) => offsets.set(box.dataset.keep, box.scrollLeft));
  if (old) old.replaceWith(next);
  else page.append(next);
  next.querySelectorAll("details").forEach((details) => (details.open = openDetails.has(details.dataset.open)));
  next.querySelectorAll(".tu-scroll").forEach((box) => (box.scrollLeft = offsets.get(box.dataset.keep) ?? 0));
  order();
  if (keep) next.querySelector(`[data-keep="${keep}"]`)?.focus({ preventScroll: true });
}

function order() {
  const table = sort && page.querySelector(`[data-table=${sort.table}]`);
  if (!table) return;
  const heads = [...table.querySelectorAll("thead th")];
  const at = heads.findIndex((head) => head.querySelector(`[data-sort=${sort.key}]`));
  if (at < 0) return;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[at].setAttribute("aria-sort", sort.down ? "descending" : "ascending");
  const number = heads[at].classList.contains("number");
  const value = (row) => row.children[at].dataset.v;
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === ""); // unknown values come last in either order
    const sign = number ? Number(a) - Number(b) : a.localeCompare(b);
    return sort.down ? -sign : sign;
  });
  table.tBodies[0].append(...rows);
}

async function refresh() {
  clearTimeout(timer);
  if (!page.isConnected) return;
  if (!document.hidden) {
    try {
      const response = await fetch("/api/v1/admin/summary.html", { cache: "no-store" });
      if (response.ok) {
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        fresh.querySelectorAll("[data-part]").forEach((part) => put(document.adoptNode(part)));
        say("");
        page.dataset.state = "ready";
      } else if (response.status === 401 || response.status === 403) {
        say(response.status === 401 ? "You are not signed in." : "This page is for admins of the campaign.");
        page.dataset.state = "refused";
        return;
      } else say(`The server cannot show the figures (${response.status}); trying again.`);
    } catch {
      say("The server does not answer; trying again. The figures below are old.");
    }
  }
  timer = setTimeout(refresh, EVERY_MS);
}

page.addEventListener("click", (event) => {
  const button = event.target.closest("[data-sort]");
  if (!button) return;
  const table = button.closest("table").dataset.table;
  const again = sort && sort.table === table && sort.key === button.dataset.sort;
  sort = {
    table,
    key: button.dataset.sort,
    down: again ? !sort.down : button.closest("th").classList.contains("number"),
  };
  order();
});
page.addEventListener(
  "toggle",
  (event) => openDetails[event.target.open ? "add" : "delete"](event.target.dataset.open),
  true, // toggle does not bubble
);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();

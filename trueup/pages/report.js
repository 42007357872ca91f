// Filters and sorts the list of prompts in a report. Without this script it is a plain list.
"use strict";
(() => {
  const list = document.querySelector("ol.prompts");
  const controls = document.querySelector(".filters");
  if (!list || !controls) return;
  const rows = [...list.children].map((row) => ({
    row,
    details: row.querySelector("details"),
    category: row.dataset.category,
    shares: JSON.parse(row.dataset.shares), // {judge: share of the comparisons that the aligned policy wins}
    text: null, // its prompt and answers, once somebody searches
  }));
  const field = (name) => controls.querySelector(`[data-field="${name}"]`);
  const [text, category, judge, winner, order] = ["text", "category", "judge", "winner", "order"].map(field);
  const count = controls.querySelector("[role=status]");
  const open = field("open");

  const winners = {
    any: () => true,
    aligned: (share) => share > 0.5,
    neither: (share) => share === 0.5,
    reference: (share) => share < 0.5,
  };
  // Prompts without a judgement (null) stand last in either order.
  const by = (sign) => (a, b) => {
    const [x, y] = [a.shares[judge.value], b.shares[judge.value]];
    if (x == null || y == null) return (x == null) - (y == null);
    return sign * (x - y);
  };
  const spread = ({ shares }) => {
    const known = Object.values(shares).filter((share) => share != null);
    return known.length ? Math.max(...known) - Math.min(...known) : 0;
  };
  const orders = {
    sampled: () => 0,
    aligned: by(-1),
    reference: by(1),
    disagree: (a, b) => spread(b) - spread(a),
  };

  function isWon({ shares }) {
    const share = shares[judge.value];
    return winner.value === "any" || (share != null && winners[winner.value](share));
  }

  const plain = (words) => words.toLowerCase().replace(/\s+/g, " ").trim();
  const textOf = (row) =>
    [...row.querySelectorAll(".asked, .turn, blockquote")].map((part) => part.textContent).join(" ");

  function contains(row, search) {
    row.text ??= plain(textOf(row.row));
    return row.text.includes(search);
  }

  function show() {
    const search = plain(text.value);
    let matches = 0;
    for (const row of rows) {
      const fits = (!category.value || row.category === category.value) && isWon(row) && contains(row, search);
      row.row.hidden = !fits;
      matches += fits;
    }
    count.textContent = matches === rows.length ? `All ${rows.length} prompts` : `${matches} of ${rows.length} prompts`;
    open.disabled = matches === 0;
    label();
  }

  function sort() {
    // Array.sort keeps the order of equal rows, which is that of the page.
    list.append(...[...rows].sort(orders[order.value]).map(({ row }) => row));
  }

  const visible = () => rows.filter(({ row }) => !row.hidden);
  const allOpen = () => visible().every(({ details }) => details.open);
  const label = () => (open.textContent = allOpen() ? "Close all shown" : "Open all shown");

  text.addEventListener("input", show);
  for (const choice of [category, winner]) choice.addEventListener("change", show);
  judge.addEventListener("change", () => (sort(), show()));
  order.addEventListener("change", sort);
  open.addEventListener("click", () => {
    const to = !allOpen();
    for (const { details } of visible()) details.open = to;
    label();
  });
  list.addEventListener("toggle", label, true); // toggle does not bubble
  field("clear").addEventListener("click", () => {
    for (const choice of [category, judge, winner, order]) choice.selectedIndex = 0;
    text.value = "";
    sort();
    show();
    text.focus();
  });

  controls.hidden = false;
  show();
})();

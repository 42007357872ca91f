// The list of prompts in a report: which are shown, and in which order. Without this script it is a plain list.
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
    text: null, // what is asked and said there, once somebody searches
  }));
  const field = (name) => controls.querySelector(`[data-field="${name}"]`);
  const [text, category, judge, winner, order] = ["text", "category", "judge", "winner", "order"].map(field);
  const count = controls.querySelector("[role=status]");
  const open = field("open");

  const won = {
    any: () => true,
    aligned: (share) => share > 0.5,
    neither: (share) => share === 0.5,
    reference: (share) => share < 0.5,
  };
  // Unjudged prompts (null) stand last, in either order.
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

  function says({ shares }) {
    const share = shares[judge.value];
    return winner.value === "any" || (share != null && won[winner.value](share));
  }

  const plain = (said) => said.toLowerCase().replace(/\s+/g, " ").trim();
  const said = (row) =>
    [...row.querySelectorAll(".asked, .turn, blockquote")].map((part) => part.textContent).join(" ");

  function contains(row, wanted) {
    row.text ??= plain(said(row.row));
    return row.text.includes(wanted);
  }

  function show() {
    const wanted = plain(text.value);
    let shown = 0;
    for (const row of rows) {
      const kept = (!category.value || row.category === category.value) && says(row) && contains(row, wanted);
      row.row.hidden = !kept;
      shown += kept;
    }
    count.textContent = shown === rows.length ? `All ${rows.length} prompts` : `${shown} of ${rows.length} prompts`;
    open.disabled = shown === 0;
    label();
  }

  function sort() {
    // Array.sort keeps equals in their places, which are those of the page as it came.
    list.append(...[...rows].sort(orders[order.value]).map(({ row }) => row));
  }

  const visible = () => rows.filter(({ row }) => !row.hidden);
  const allOpen = () => visible().every(({ details }) => details.open);
  const label = () => (open.textContent = allOpen() ? "Close all shown" : "Open all shown");

  text.addEventListener("input", show);
  for (const chosen of [category, winner]) chosen.addEventListener("change", show);
  judge.addEventListener("change", () => (sort(), show()));
  order.addEventListener("change", sort);
  open.addEventListener("click", () => {
    const to = !allOpen();
    for (const { details } of visible()) details.open = to;
    label();
  });
  list.addEventListener("toggle", label, true); // it does not bubble
  field("clear").addEventListener("click", () => {
    for (const chosen of [category, judge, winner, order]) chosen.selectedIndex = 0;
    text.value = "";
    sort();
    show();
    text.focus();
  });

  controls.hidden = false;
  show();
})();

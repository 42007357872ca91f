// Shows a diff in two rendered texts: words of only one of them are marked, their common beginning is faded.

import { diff, WORD } from "./diff.js";

/** Marks both elements; returns a sentence on how much they differ. */
export function markDifferences(left, right) {
  const [a, b] = [wordsOf(left), wordsOf(right)];
  const shared = diff(
    a.map((word) => word.text),
    b.map((word) => word.text),
  );
  paint(a, shared.a, shared.prefix);
  paint(b, shared.b, shared.prefix);
  const only = (flags) => flags.filter((same) => !same).length;
  if (!shared.whole)
    return "The answers are too long to compare whole: the marks are right only at their beginnings and ends";
  if (only(shared.a) + only(shared.b) === 0) return "Both answers say the same, word for word";
  return `Only in A: ${only(shared.a)} of ${a.length} words; only in B: ${only(shared.b)} of ${b.length}`;
}

/** The words of an element in reading order; a formula is one word. */
function wordsOf(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, (node) =>
    node.parentNode.closest("math") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT,
  );
  const words = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.localName === "math") words.push({ text: node.textContent, math: node });
    if (node.nodeType !== Node.TEXT_NODE) continue;
    for (const { 0: text, index } of node.data.matchAll(WORD)) words.push({ text, node, start: index });
  }
  return words;
}

function paint(words, shared, prefix) {
  const kind = (i) => (!shared[i] ? "tu-only" : i < prefix ? "tu-begin" : null);
  for (let last = words.length - 1; last >= 0; last--) {
    if (words[last].math) {
      if (kind(last)) words[last].math.classList.add(kind(last));
      continue;
    }
    let first = last; // a run of one kind in one text node gets one mark; from the end, so that starts stay true
    while (first > 0 && words[first - 1].node === words[last].node && kind(first - 1) === kind(last)) first--;
    if (kind(last)) {
      const range = document.createRange();
      range.setStart(words[last].node, words[first].start);
      range.setEnd(words[last].node, words[last].start + words[last].text.length);
      const mark = document.createElement(kind(last) === "tu-only" ? "mark" : "span");
      mark.className = kind(last);
      range.surroundContents(mark);
    }
    last = first;
  }
}

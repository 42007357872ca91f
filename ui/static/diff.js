// Which words two texts share: Myers' greedy algorithm (1986, "An O(ND) difference algorithm"), pure functions.

export const MAX_EDITS = 1000; // work and memory grow with its square; texts that differ more have little in common

/** Shared words of two lists: {a, b, prefix, whole}. a[i], b[j]: whether the word is shared; prefix: so many words at
 *  the start are the same; whole: false if they differ so much that only what is the same at both ends was compared. */
export function diff(a, b, maxEdits = MAX_EDITS) {
  const shared = { a: new Array(a.length).fill(false), b: new Array(b.length).fill(false), prefix: 0, whole: true };
  const keep = (i, j) => (shared.a[i] = shared.b[j] = true);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) keep(start, start++);
  let [endA, endB] = [a.length, b.length];
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) keep(--endA, --endB);
  shared.prefix = start;
  const matches = middle(a.slice(start, endA), b.slice(start, endB), maxEdits);
  shared.whole = matches !== null;
  for (const [i, j] of matches ?? []) keep(start + i, start + j);
  return shared;
}

/** Matching positions [i, j] of a longest common subsequence, last first; null if it takes more than maxEdits edits. */
function middle(a, b, maxEdits) {
  const most = Math.min(a.length + b.length, maxEdits);
  const furthest = new Int32Array(2 * most + 3); // furthest[k + most + 1]: how far in `a` the diagonal k was followed
  const trace = [];
  for (let d = 0; d <= most; d++) {
    for (let k = -d; k <= d; k += 2) {
      const at = k + most + 1;
      const down = k === -d || (k !== d && furthest[at - 1] < furthest[at + 1]);
      let x = down ? furthest[at + 1] : furthest[at - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest[at] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(trace, d, k, x);
    }
    trace.push(furthest.slice(most + 1 - d, most + 2 + d)); // diagonals -d to d
  }
  return null;
}

function walkBack(trace, d, k, x) {
  const matches = [];
  for (; d > 0; d--) {
    const before = trace[d - 1]; // diagonals -(d - 1) to d - 1
    const at = (diagonal) => before[diagonal + d - 1] ?? -1;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const from = down ? at(k + 1) : at(k - 1) + 1;
    while (x > from) matches.push([--x, x - k]);
    k = down ? k + 1 : k - 1;
    x = at(k);
  }
  while (x > 0) matches.push([--x, x - k]);
  return matches;
}

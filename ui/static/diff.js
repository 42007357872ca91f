// The words that two texts share: a longest common subsequence, as in trueup/pages/worddiff.py. Pure functions.

export const MAX_WORDS = 5000; // the time grows with the product of both

// A word is the text between blanks; in a script without blanks it is one character.
const UNSPACED =
  "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}\\p{Script=Lao}\\p{Script=Khmer}\\p{Script=Myanmar}";
export const WORD = new RegExp(`[${UNSPACED}]\\p{M}*|[^\\p{White_Space}${UNSPACED}]+`, "gu");

/** Shared words of two lists: {a, b, prefix, whole}. a[i], b[j]: whether the word is shared; prefix: the number of
 *  equal words at the start; whole: false if the lists are so long that only their equal ends were compared. */
export function diff(a, b) {
  const shared = { a: new Array(a.length).fill(false), b: new Array(b.length).fill(false), prefix: 0, whole: true };
  const keep = (i, j) => (shared.a[i] = shared.b[j] = true);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) keep(start, start++);
  let [endA, endB] = [a.length, b.length];
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) keep(--endA, --endB);
  shared.prefix = start;
  shared.whole = Math.max(endA, endB) - start <= MAX_WORDS;
  if (shared.whole) {
    for (const [i, j] of matches(a.slice(start, endA), b.slice(start, endB))) keep(start + i, start + j);
  }
  return shared;
}

/** Places [i, j] of a longest common subsequence, the last first. Row j of the table of lengths is one number: its bit
 *  i is 0 where the length grows at word i of `a` (Crochemore et al. 2001). */
function matches(a, b) {
  const places = new Map();
  a.forEach((word, i) => places.set(word, (places.get(word) ?? 0n) | (1n << BigInt(i))));
  const every = (1n << BigInt(a.length)) - 1n;
  const rows = [every];
  for (const word of b) {
    const row = rows.at(-1);
    const both = row & (places.get(word) ?? 0n);
    rows.push(((row + both) | (row - both)) & every);
  }
  const isSet = (j, i) => (rows[j] >> BigInt(i - 1)) & 1n;
  const pairs = [];
  for (let [i, j] = [a.length, b.length]; i > 0 && j > 0; ) {
    if (isSet(j, i)) i--;
    else if (isSet(j - 1, i)) pairs.push([--i, --j]);
    else j--;
  }
  return pairs;
}

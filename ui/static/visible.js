// Text as nodes in which every character can be seen, as in trueup/data/visible.py on the server: a character that is
// invisible, or that changes the order of others, becomes a mark.

import { make } from "./make.js";

// biome-ignore format: six to a line
const NAMES = {
  "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM",
  "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ",
  "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\u00ad": "SHY", "\ufeff": "BOM",
};
const SPELLS =
  "(?![\\p{Script=Latin}\\p{Script=Greek}\\p{Script=Cyrillic}\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}" +
  "\\p{Script=Hangul}])[\\p{L}\\p{M}]";
// All alternatives but the last are part of the text, and stay, such as joiners within a script or an emoji.
const INVISIBLE = new RegExp(
  `(?<=${SPELLS})[\\u200c\\u200d](?=${SPELLS})` +
    "|(?<=[\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\ufe0f])\\u200d(?=\\p{Extended_Pictographic})" +
    "|(?<=\\p{Emoji})[\\ufe0e\\ufe0f]|(?<=[\\p{Script=Han}\\p{Script=Mongolian}])\\p{Variation_Selector}|\\r\\n" +
    "|((?![\\n\\t\\u0600-\\u0605\\u06dd\\u070f\\u08e2])[\\p{Default_Ignorable_Code_Point}\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}])\\1*",
  "gu",
);

export function seen(text) {
  const nodes = [];
  let at = 0;
  for (const { 0: run, 1: one, index } of text.matchAll(INVISIBLE)) {
    if (one === undefined) continue;
    if (index > at) nodes.push(document.createTextNode(text.slice(at, index)));
    const name = NAMES[one] ?? `U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    const count = run.length / one.length;
    nodes.push(make("span", { className: "tu-mark", dir: "ltr" }, count > 1 ? `${name}×${count}` : name));
    at = index + run.length;
  }
  if (at < text.length) nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}

/** The line over folded reasoning. */
export function reasoningTitle(reasoning) {
  const words = reasoning.split(/\s+/).filter(Boolean).length;
  return `Reasoning, ${words} ${words === 1 ? "word" : "words"}`;
}

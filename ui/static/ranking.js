// Ranking of K answers: tiers of places, best first, ties within a tier. Pure functions, and the strip that shows them.

export const letter = (place) => String.fromCharCode(65 + place);

// ---- Pure -------------------------------------------------------------------------------------------------------

export const without = (tiers, place) =>
  tiers.map((tier) => tier.filter((other) => other !== place)).filter((tier) => tier.length);

/** Add a place after the others, or tied with the last of them. A place that is ranked already stays where it is. */
export function append(tiers, place, tie = false) {
  if (tiers.flat().includes(place)) return tiers;
  if (tie && tiers.length) return [...tiers.slice(0, -1), [...tiers.at(-1), place]];
  return [...tiers, [place]];
}

/** Remove the place that was ranked last. */
export const back = (tiers) => (tiers.length ? without(tiers, tiers.at(-1).at(-1)) : tiers);

/** Move a place onto a tier, {onto: a place in it}, or before a tier, {before: a place in it; null: after all}. */
export function move(tiers, place, { onto, before }) {
  if (onto === place || before === place) return tiers;
  const rest = without(tiers, place);
  if (onto !== undefined) return rest.map((tier) => (tier.includes(onto) ? [...tier, place] : tier));
  const at = before === null ? rest.length : rest.findIndex((tier) => tier.includes(before));
  return [...rest.slice(0, at), [place], ...rest.slice(at)];
}

export const isWhole = (tiers, count) => tiers.flat().length === count;

/** The rank of a place, such as "1st", with "=" where several share it; "" if it has none. */
export function rank(tiers, place) {
  const at = tiers.findIndex((tier) => tier.includes(place));
  if (at < 0) return "";
  const above = tiers.slice(0, at).flat().length + 1;
  const ordinal = `${above}${{ 1: "st", 2: "nd", 3: "rd" }[above] ?? "th"}`;
  return tiers[at].length > 1 ? `${ordinal} =` : ordinal;
}

// ---- The strip --------------------------------------------------------------------------------------------------

const DRAG_PX = 6; // a pointer that moved less was a click

/** Chips in `element`: the ranked ones in their tiers, the others behind them. A click ranks a chip or takes it out; a
 *  drag puts it onto another (a tie) or between two. onChange(tiers) is called with the new tiers. */
export class Strip {
  constructor(element, onChange) {
    Object.assign(this, { element, onChange, tiers: [], count: 0, drag: null });
    element.addEventListener("pointerdown", (event) => this.begin(event));
    element.addEventListener("pointermove", (event) => this.follow(event));
    element.addEventListener("pointerup", (event) => this.end(event));
    element.addEventListener("pointercancel", () => this.letGo());
    element.addEventListener("click", (event) => {
      const chip = event.target.closest("[data-place]");
      if (chip && !this.dragged) this.click(Number(chip.dataset.place));
      this.dragged = false;
    });
  }

  show(tiers, count) {
    Object.assign(this, { tiers, count });
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    const open = [...Array(count).keys()].filter((place) => !tiers.flat().includes(place));
    const chip = (place) => {
      const ordinal = rank(tiers, place);
      const label = ordinal ? `${letter(place)}, ${ordinal}: take it out` : `${letter(place)}: rank it next`;
      const inner = `data-place="${place}" aria-label="${label}">${letter(place)}`;
      return `<button type="button" class="tu-chip" ${inner}</button>`;
    };
    const tier = (places) =>
      `<li data-tier="${places[0]}">${places.map(chip).join('<i aria-hidden="true">=</i>')}</li>`;
    this.element.innerHTML =
      `<ol class="tu-tiers" aria-label="Ranked, best first">${tiers.map(tier).join("")}</ol>` +
      `<div class="tu-tray" role="group" aria-label="Not ranked yet">${open.map(chip).join("")}</div>`;
    if (focused !== null) this.element.querySelector(`[data-place="${focused}"]`)?.focus({ preventScroll: true });
  }

  click(place) {
    this.onChange(this.tiers.flat().includes(place) ? without(this.tiers, place) : append(this.tiers, place));
  }

  begin(event) {
    const chip = event.target.closest("[data-place]");
    if (!chip || event.button !== 0) return;
    this.drag = { chip, place: Number(chip.dataset.place), x: event.clientX, y: event.clientY, moved: false };
  }

  follow(event) {
    if (!this.drag) return;
    const [dx, dy] = [event.clientX - this.drag.x, event.clientY - this.drag.y];
    if (!this.drag.moved && Math.hypot(dx, dy) < DRAG_PX) return;
    if (!this.drag.moved) this.element.setPointerCapture(event.pointerId);
    this.drag.moved = true;
    this.drag.chip.classList.add("dragged");
    this.drag.chip.style.transform = `translate(${dx}px, ${dy}px)`;
    this.mark(this.target(event.clientX, event.clientY));
  }

  end(event) {
    if (!this.drag) return;
    const { moved, place } = this.drag;
    const target = moved && this.target(event.clientX, event.clientY);
    this.letGo();
    if (!moved) return;
    this.dragged = true; // the click that follows is part of the drag
    setTimeout(() => (this.dragged = false));
    if (target === "tray") this.onChange(without(this.tiers, place));
    else if (target) this.onChange(move(this.tiers, place, target));
  }

  letGo() {
    if (!this.drag) return;
    this.drag.chip.classList.remove("dragged");
    this.drag.chip.style.transform = "";
    this.drag = null;
    this.mark(null);
  }

  /** The target under the pointer: the middle of a tier is a tie, its edges and the gaps are between two tiers. */
  target(x, y) {
    const boxes = [...this.element.querySelectorAll("[data-tier]")]
      .map((tier) => ({ tier, box: tier.getBoundingClientRect(), first: Number(tier.dataset.tier) }))
      .filter(({ tier }) => tier.children.length > 1 || tier !== this.drag.chip.parentElement);
    const strip = this.element.getBoundingClientRect();
    if (y < strip.top - 60 || y > strip.bottom + 60) return null;
    for (const { tier, box, first } of boxes) {
      if (y < box.top || y > box.bottom || x < box.left || x > box.right) continue;
      const edge = Math.min(12, box.width / 4);
      if (x < box.left + edge) return { before: first };
      if (x <= box.right - edge)
        return { onto: [...tier.querySelectorAll("[data-place]")].map(placeOf).find(this.other) };
    }
    const tray = this.element.querySelector(".tu-tray").getBoundingClientRect();
    const wasRanked = this.tiers.flat().includes(this.drag.place);
    if (wasRanked && tray.width && x > tray.left && x < tray.right && y > tray.top && y < tray.bottom) return "tray";
    const next = boxes.find(({ box }) => y < box.top || (y <= box.bottom && x < box.left + 12));
    return { before: next ? next.first : null };
  }

  other = (place) => place !== this.drag.place;

  mark(target) {
    this.element
      .querySelectorAll(".onto, .before, .after")
      .forEach((old) => old.classList.remove("onto", "before", "after"));
    if (!target || target === "tray") return;
    const tierOf = (place) => this.element.querySelector(`[data-place="${place}"]`).closest("[data-tier]");
    if (target.onto !== undefined) tierOf(target.onto)?.classList.add("onto");
    else if (target.before !== null) tierOf(target.before)?.classList.add("before");
    else this.element.querySelector(".tu-tiers").classList.add("after");
  }
}

const placeOf = (chip) => Number(chip.dataset.place);

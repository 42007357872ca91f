// What is said differently where people vote on a comparison, and what is told after a vote.

/** Of labelling and of voting: what one answer is called, several, to give one, given. */
export const WORDS = {
  label: { one: "label", many: "labels", to: "label", did: "labelled", counted: "labelled" },
  vote: { one: "vote", many: "votes", to: "vote on", did: "voted", counted: "voted on" },
};
/** What the page can do that has no place beside a vote: it is final, and of held-out prompts. */
export const NOT_WHILE_VOTING = ["undo", "write"];

const POLICIES = { aligned: "aligned policy", sft: "SFT policy" };

/** A policy's name as a mark over its answer. */
export const nameOf = (policy) => POLICIES[policy].replace(/^a/, "A");

/** Whose the answers were, and which was preferred. */
export function told({ a, b }, choice) {
  const whose = `A is from the ${POLICIES[a]}, B from the ${POLICIES[b]}.`;
  if (choice === "both_bad") return `${whose} You found both bad.`;
  if (choice === "tie") return `${whose} You found them equal.`;
  return `${whose} You preferred the ${POLICIES[choice.startsWith("a") ? a : b]}.`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const number = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

/** The running figure, for admins. */
export function standing({ win_rate: rate, votes, voters, pairs, identical, on_other_texts: others }) {
  const said = [];
  if (rate) {
    const people = voters === 1 ? "1 person" : `${voters} people`;
    const interval = `95 % interval ${percent(rate.ci_low)} to ${percent(rate.ci_high)}`;
    said.push(
      `So far aligned wins ${percent(rate.value)} (${interval}) of ${number(votes, "vote")}, by ${people} on ` +
        `${rate.n} of ${number(pairs, "prompt")}.`,
    );
  } else said.push("No votes so far.");
  if (identical)
    said.push(`On ${number(identical, "prompt")} both policies say the same; nobody is asked about those.`);
  if (others) said.push(`${number(others, "vote")} on answers of an earlier comparison not counted.`);
  return said.join(" ");
}

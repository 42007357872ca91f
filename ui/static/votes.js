// The words of the labelling page where people vote on a comparison, and its sentences after a vote.

/** The words of labelling and of voting: the noun, its plural, the verb, its past, and what a pair then is. */
export const WORDS = {
  label: { one: "label", many: "labels", to: "label", did: "labelled", counted: "labelled" },
  vote: { one: "vote", many: "votes", to: "vote on", did: "voted", counted: "voted on" },
};
/** Actions that voting lacks: a vote is final, and its prompt is held out, so nothing may be learnt from it. */
export const NOT_WHILE_VOTING = ["undo", "write"];

const POLICIES = { aligned: "aligned policy", sft: "SFT policy" };

/** A policy's name, as it stands over its answer. */
export const nameOf = (policy) => POLICIES[policy].replace(/^a/, "A");

/** A sentence on the policies of the answers, and one on the preferred policy. */
export function revealed({ a, b }, choice) {
  const whose = `A is from the ${POLICIES[a]}, B from the ${POLICIES[b]}.`;
  if (choice === "both_bad") return `${whose} You found both bad.`;
  if (choice === "tie") return `${whose} You found them equal.`;
  return `${whose} You preferred the ${POLICIES[choice.startsWith("a") ? a : b]}.`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const number = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

/** The win rate so far, in sentences for admins. */
export function standing({ win_rate: rate, votes, voters, pairs, identical, on_other_texts: others }) {
  const sentences = [];
  if (rate) {
    const people = voters === 1 ? "1 person" : `${voters} people`;
    const interval = `95 % interval ${percent(rate.ci_low)} to ${percent(rate.ci_high)}`;
    sentences.push(
      `So far aligned wins ${percent(rate.value)} (${interval}) of ${number(votes, "vote")}, by ${people} on ` +
        `${rate.n} of ${number(pairs, "prompt")}.`,
    );
  } else sentences.push("There are no votes so far.");
  if (identical)
    sentences.push(`On ${number(identical, "prompt")} both policies say the same; nobody is asked about those.`);
  if (others) sentences.push(`Not counted: ${number(others, "vote")} on answers of an earlier comparison.`);
  return sentences.join(" ");
}

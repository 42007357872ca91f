"""Do our strict IFEval verdicts agree with the benchmark's own, instruction by instruction?

    python benchmarks/ifeval_agreement.py DATA_DIR

DATA_DIR has input_data.jsonl, and gpt4_reference_verdicts_strict.part.jsonl with the verdicts that the benchmark's
authors published for GPT-4's answers to some of those prompts. Exit code 1 if any verdict differs.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rlhf.checks import instruction_verdicts, read_instructions
from trueup.data.records import read_jsonl


def main(data: Path) -> int:
    asked = {}
    for number, values in read_jsonl(data / "input_data.jsonl"):
        prompt, instructions = read_instructions(values, f"input_data.jsonl:{number}")
        asked[prompt] = instructions
    total: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for number, row in read_jsonl(data / "gpt4_reference_verdicts_strict.part.jsonl"):
        instructions = asked[row["prompt"]]
        ours = instruction_verdicts(instructions, row["response"])
        for instruction, verdict, reference in zip(instructions, ours, row["follow_instruction_list"], strict=True):
            total[instruction.name] += verdict is not None
            agreed[instruction.name] += verdict == reference
            if verdict not in (None, reference):
                print(f"line {number}: {instruction.name}: reference {reference}, here {verdict}")
    known = {one.name: one.follows is not None for instructions in asked.values() for one in instructions}
    for name in sorted(name for name in known if total[name]):
        print(f"{name:<45} {agreed[name]:>4} of {total[name]}")
    print(f"{'all':<45} {agreed.total():>4} of {total.total()}")
    untested = sorted(name for name, supported in known.items() if supported and not total[name])
    print(f"supported, but without reference verdicts here: {', '.join(untested) or 'none'}")
    print(f"unsupported: {', '.join(sorted(name for name, supported in known.items() if not supported)) or 'none'}")
    return int(agreed != total)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))

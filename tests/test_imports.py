"""What imports cost: nothing for the package, little more than torch for the model."""

import subprocess
import sys

# Processor time, so that a busy machine does not count, and the least of three processes: the first may compile to bytecode,
# and no accident makes an import cheaper than it is.
TIMED = """
import time
{first}
start = time.process_time()
{then}
print(time.process_time() - start)
"""


def seconds(first: str, then: str) -> float:
    command = [sys.executable, "-c", TIMED.format(first=first, then=then)]
    return min(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3))


def test_importing_the_package_takes_a_tenth_of_a_second_at_most():
    assert seconds("", "import interp_gpt2") <= 0.1


def test_importing_the_model_takes_at_most_three_tenths_of_a_second_more_than_torch():
    assert seconds("import torch", "from interp_gpt2 import GPT2") <= 0.3


def test_neither_loads_what_it_does_not_need():
    probe = "import sys; {}; print({{name.split('.')[0] for name in sys.modules}} & {})"

    def found(statement: str, *unneeded: str) -> str:
        command = [sys.executable, "-c", probe.format(statement, set(unneeded))]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert found("import interp_gpt2", "torch", "numpy") == "set()"
    assert found("from interp_gpt2 import GPT2Config", "torch", "numpy") == "set()"
    assert found("from interp_gpt2 import GPT2", "transformers", "pandas", "scipy", "matplotlib", "sklearn") == "set()"

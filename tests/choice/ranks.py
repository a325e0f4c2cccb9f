"""One rank of two: the work itself stands in ``test_ensemble.py``, beside the test that compares.

python tests/choice/ranks.py RANK FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the rank that the command line names."""
    spec = importlib.util.spec_from_file_location("ensembles", Path(__file__).with_name("test_ensemble.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._rank(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter


if __name__ == "__main__":
    main()

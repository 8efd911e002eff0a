import pytest

from mmrl.errors import ConfigError
from mmrl.objective.metrics import pass_at_k


def test_pass_at_k():
    assert [pass_at_k(10, 3, k) for k in (1, 5, 8)] == pytest.approx([0.3, 0.916667, 1.0], abs=1e-6)
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 4, 1) == 1
    with pytest.raises(ConfigError, match="pass@11"):
        pass_at_k(10, 3, 11)

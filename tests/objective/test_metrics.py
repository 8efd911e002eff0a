import pytest

from mmrl.errors import ConfigError
from mmrl.objective.metrics import answer_entropy, pass_at_k, support_metrics


def test_pass_at_k():
    assert [pass_at_k(10, 3, k) for k in (1, 5, 8)] == pytest.approx([0.3, 0.916667, 1.0], abs=1e-6)
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 4, 1) == 1
    with pytest.raises(ConfigError, match="pass@11"):
        pass_at_k(10, 3, 11)


def test_support_metrics():
    values = support_metrics(80, 5, 15)
    assert [values[n] for n in ("SRR", "NDR", "SDS", "NSCR")] == pytest.approx(
        [0.842105, 0.058824, 0.109966, -0.1], abs=1e-6
    )
    assert set(support_metrics(0, 0, 0).values()) == {0.0}


def test_answer_entropy():
    assert answer_entropy("aaab") == pytest.approx(0.562335, abs=1e-6)
    assert answer_entropy("aaaa") == 0

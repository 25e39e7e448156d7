import pytest

from cellmill.training.schedule import OptimizerConfig, learning_rate


def test_warm_up_peak_and_end_of_the_cosine() -> None:
    config = OptimizerConfig(lr=1e-3, warmup=10, final_lr=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert rates[-1] == pytest.approx(1e-4, rel=1e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_warm_up_below_one_is_a_share_of_the_run() -> None:
    config = OptimizerConfig(lr=1.0, warmup=0.1, schedule="constant")
    assert [learning_rate(config, step, 50) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(OptimizerConfig(lr=2.0, warmup=0), 0, 10) == 2.0

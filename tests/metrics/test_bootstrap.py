"""Bootstrap intervals: how often they hold the true mean, and what groups and data sets do."""

import numpy as np
import pytest
import torch
from torch import nan
from torch.testing import assert_close

from corelens.metrics import bootstrap_interval, bootstrap_means, group_rows, join_groups, simultaneous_interval


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    draw = torch.Generator().manual_seed(0)
    # Forty times five heads, each an experiment of its own with thirty samples.
    values = torch.randn(30, 40, 5, generator=draw, dtype=torch.double) + 3
    low, high = bootstrap_interval(values, 0.9)
    covered = ((low < 3) & (high > 3)).double().mean()
    assert 0.83 < covered < 0.95
    assert torch.equal(bootstrap_interval(values, 0.9).low, low)
    values[:, 0, 0] = nan
    low, _ = bootstrap_interval(values)
    assert low[0, 0].isnan()
    assert (~low.isnan()).sum() == 199
    assert bool(bootstrap_interval(values[:1]).low.isnan().all())
    assert bool(bootstrap_interval(values, groups=["one picture"] * 30).low.isnan().all())


def test_intervals_of_zeros_and_ones_hold_rare_shares():
    draw = torch.Generator().manual_seed(0)
    hits = (torch.rand(50, 60, 10, generator=draw) < 0.02).double()
    low, high = bootstrap_interval(hits)
    assert ((low <= 0.02) & (high >= 0.02)).double().mean() > 0.93
    assert bool((low < high).all())


def clustered_losses(n_groups: int, rate: float, n: int = 500) -> torch.Tensor:
    """Losses of four samples a group in `n` experiments, with an intra-cluster correlation of one half."""
    rng = np.random.default_rng(0)
    shared, own = rng.random((n_groups, 1, n)) < rate, rng.random((n_groups, 4, n)) < rate
    lost = np.where(rng.random((n_groups, 4, n)) < 0.5**0.5, shared, own)
    return -torch.from_numpy(lost.reshape(-1, n).astype(float))


N_GROUPS_AND_LOSSES = [(n, rate) for n in (10, 25, 100, 250) for rate in (0.005, 0.02, 0.05, 0.3, 0.5)]


@pytest.mark.parametrize(("n_groups", "rate"), N_GROUPS_AND_LOSSES)
def test_intervals_of_clustered_samples_hold_the_mean_as_often_as_they_say(n_groups: int, rate: float):
    losses, groups = clustered_losses(n_groups, rate), [number for number in range(n_groups) for _ in range(4)]

    def covered(groups: list[int]) -> float:
        means = bootstrap_means(losses, 1000, np.random.default_rng(0), (-1, 1), groups)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.double), 0)
        return float(((low <= -rate) & (-rate <= high)).double().mean())

    assert covered(groups) > 0.93
    # Wider than need be where a few groups have losses.
    if n_groups * rate >= 10:
        assert covered(groups) < 0.98
        assert covered([]) < 0.88


@pytest.mark.parametrize("extremes", [None, (0, 1)])
def test_copies_of_a_sample_say_nothing_new(extremes: tuple[float, float] | None):
    values = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double()
    values[2, 1] = nan
    of_copies, of_one = (
        bootstrap_means(rows, 50, np.random.default_rng(0), extremes, groups)
        for rows, groups in ((values.repeat(4, 1), list("abcdefg") * 4), (values, []))
    )
    assert_close(of_copies, of_one)


def test_data_sets_count_alike_in_the_means_of_draws():
    values = torch.cat([torch.zeros(99, 1, 2), torch.ones(3, 1, 2)])
    means = bootstrap_means(values, 20, np.random.default_rng(0), datasets=["many"] * 99 + ["few"] * 3)
    assert means.unique().tolist() == [0.5]


@pytest.mark.parametrize("kind", ["skewed", "hits", "clustered"])
def test_the_interval_of_the_head_that_the_samples_chose_holds_its_mean(kind: str):
    """All heads are equal, so that the first is first by luck."""
    rng = np.random.default_rng(0)
    simultaneous = single = n = 60
    groups = [number for number in range(25) for _ in range(4)] if kind == "clustered" else []
    for _ in range(n):
        values, mean = {
            "skewed": lambda: (rng.beta(0.3, 2, (100, 6, 16)), 0.3 / 2.3),
            "hits": lambda: (1.0 * (rng.random((100, 6, 16)) < 0.1), 0.1),
            "clustered": lambda: (rng.normal(size=(25, 1, 6, 16)) + rng.normal(size=(25, 4, 6, 16)), 0.0),
        }[kind]()
        values = torch.from_numpy(values.reshape(100, 6, 16))
        first = divmod(int(values.mean(0).argmax()), 16)
        for interval in (bootstrap_interval, simultaneous_interval):
            low, high = interval(values, n_draws=500, groups=groups)
            missed = not low[first] <= mean <= high[first]
            if interval is bootstrap_interval:
                single -= missed
            else:
                simultaneous -= missed
    assert simultaneous / n >= 0.93
    assert single / n < 0.6


def test_simultaneous_intervals_hold_all_means_together():
    draw = torch.Generator().manual_seed(0)
    held = [simultaneous_interval(torch.randn(60, 4, 8, generator=draw).double(), n_draws=500) for _ in range(100)]
    assert 88 <= sum(bool(((low < 0) & (high > 0)).all()) for low, high in held) <= 99
    values = torch.randn(5, 1, 3, generator=draw)
    values[:, 0, 0], values[:, 0, 1] = 2, nan
    low, high = simultaneous_interval(values)
    assert (float(low[0, 0]), float(high[0, 0])) == (2, 2)
    assert low[0, 1].isnan()
    assert float(low[0, 2]) < float(values[:, 0, 2].mean()) < float(high[0, 2])
    for interval in (simultaneous_interval, bootstrap_interval):
        with pytest.raises(ValueError, match=r"level=1.0 is outside \(0, 1\)"):
            interval(values, 1.0)


def test_groups_are_of_every_sample():
    assert [rows.tolist() for rows in group_rows("abacb", 5)] == [[0, 2], [1, 4], [3]]
    assert [rows.tolist() for rows in group_rows((), 3)] == [[0], [1], [2]]
    with pytest.raises(ValueError, match="2 groups were given for 3 samples"):
        group_rows("ab", 3)
    with pytest.raises(ValueError, match="2 data sets were given for 3 samples"):
        bootstrap_means(torch.zeros(3), 5, np.random.default_rng(0), datasets=["a", "b"])


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ([(("1", "2"), ())], ()),
        ([(("1", "2"), ("1", "2"))], ()),
        ([(("1", "2"), ("p", "p")), (("3",), ())], ("p", "p", "3")),
        ([(("1",), ()), (("1",), ())], ()),
    ],
)
def test_joined_samples_without_a_group_are_their_own(
    parts: list[tuple[tuple[str, ...], tuple[str, ...]]], joined: tuple[str, ...]
):
    assert join_groups(parts) == joined

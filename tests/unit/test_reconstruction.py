"""The network: seeded, small, with autograd's gradient, and padded for scoring it says what the trained one does."""

import pytest
import torch

from streamdet.models.autoencoder import Adam, Autoencoder, _backpropagate, _Layer
from streamdet.models.scorers import ALIGNMENT, padded_width
from streamdet.models.scorers.reconstruction import Reconstruction

CPU = torch.device("cpu")


def network(columns: int, seed: int = 0) -> Autoencoder:
    return Autoencoder(columns, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 9, 30, 41, 100])
def test_the_padded_network_says_what_the_trained_one_does_and_nothing_in_the_padding(columns: int) -> None:
    trained = network(columns).eval()
    z = torch.randn(33, columns, generator=torch.Generator().manual_seed(1))
    width = padded_width(columns)
    padded = torch.nn.functional.pad(z, (0, width - columns))
    with torch.inference_mode():
        restored = Reconstruction(trained, CPU).restore(padded)
        assert torch.allclose(restored[:, :columns], trained(z), atol=1e-5)
        assert (restored[:, columns:] == 0).all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    a, b, c = network(5, 0), network(5, 0), network(5, 1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.encode_in.weight, c.encode_in.weight)


def test_weights_do_not_depend_on_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = network(5)
    torch.manual_seed(2)
    assert torch.equal(first.encode_in.weight, network(5).encode_in.weight)


@pytest.mark.parametrize("columns", [1, 12, 300])
def test_there_is_always_a_bottleneck_that_is_narrower_than_wide_rows(columns: int) -> None:
    made = network(columns)
    bottleneck = made.encode_out.out_features
    assert bottleneck == 2 if columns < 6 else bottleneck < columns
    assert sum(p.numel() for p in made.parameters()) < 100_000


@pytest.mark.parametrize(("columns", "width"), [(1, 8), (8, 8), (9, 16), (40, 40)])
def test_widths_are_padded_to_the_alignment(columns: int, width: int) -> None:
    assert padded_width(columns) == width
    assert width % ALIGNMENT == 0


@pytest.mark.parametrize("columns", [1, 5, 41])
def test_the_gradient_is_the_one_that_autograd_finds(columns: int) -> None:
    ours, theirs = network(columns), network(columns)
    generator = torch.Generator().manual_seed(2)
    target = 2.0 * torch.randn(64, columns, generator=generator)
    noisy = target + 0.1 * torch.randn(target.shape, generator=generator)
    mask = (torch.rand(target.shape, generator=generator) < 0.8).float()

    loss = torch.nn.functional.smooth_l1_loss(theirs(noisy) * mask, target * mask)
    loss.backward()  # type: ignore[no-untyped-call]

    Adam(list(ours.parameters()), 0.1)  # lays the gradients out
    with torch.no_grad():
        _backpropagate([_Layer.of(layer) for layer in ours.layers()], noisy, target, mask)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert other.grad.abs().sum() > 0
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-7)

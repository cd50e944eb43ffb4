"""The discriminator that keeps a decoder from drawing halos."""

import torch
from torch import Tensor
from torch.nn import functional

from kontext_model.training.discriminator import (
    Adversary,
    adversarial_loss,
    discriminator_loss,
    make_discriminator,
)


def _squares(count: int, seed: int) -> Tensor:
    """Dark squares on white, (count, 3, 32, 32) in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.ones(count, 3, 32, 32)
    for picture in pictures:
        top, left = (int(torch.randint(4, 12, (), generator=generator)) for _ in range(2))
        picture[:, top : top + 14, left : left + 14] = -1
    return pictures


def _haloed(pictures: Tensor) -> Tensor:
    return functional.avg_pool2d(pictures, 7, 1, 3, count_include_pad=False)


def test_it_learns_that_a_halo_is_drawn_and_pulls_the_picture_away_from_it() -> None:
    discriminator = make_discriminator(1)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.98))
    for step in range(40):
        loss = discriminator_loss(discriminator, _squares(8, step), _haloed(_squares(8, 1000 + step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sharp, haloed = _squares(8, 5000), _haloed(_squares(8, 6000)).requires_grad_()
    paid = adversarial_loss(discriminator, haloed)
    (pull,) = torch.autograd.grad(paid, haloed)
    pulled = haloed.detach() - 0.5 * pull / pull.abs().max()
    paid, less, least = (adversarial_loss(discriminator, drawn).item() for drawn in (haloed, pulled, sharp))
    assert paid > least + 0.5 and less < paid


def test_what_is_drawn_teaches_one_side_at_a_time() -> None:
    discriminator, drawn = make_discriminator(1), _haloed(_squares(2, 1)).requires_grad_()
    discriminator_loss(discriminator, _squares(2, 2), drawn).backward()
    assert drawn.grad is None and all(weight.grad is not None for weight in discriminator.parameters())
    discriminator.zero_grad(set_to_none=True)
    adversarial_loss(discriminator, drawn).backward()
    assert drawn.grad is not None and all(weight.grad is None for weight in discriminator.parameters())


def test_no_layer_stretches_what_it_is_given_and_a_patch_is_eight_pixels() -> None:
    discriminator = make_discriminator(1)
    assert discriminator(torch.zeros(2, 3, 24, 40)).shape == (2, 1, 3, 5)
    weights = [layer.weight.detach().flatten(1) for layer in discriminator if hasattr(layer, "weight")]
    norms = [torch.linalg.matrix_norm(weight, ord=2).item() for weight in weights]
    assert len(norms) == 5 and all(abs(norm - 1) < 1e-4 for norm in norms)
    assert not list(discriminator.buffers()), "a state of weights alone resumes exactly"


def test_it_has_no_say_before_it_has_learned() -> None:
    adversary = Adversary(0.1, alone=10, ramp=20)
    assert [adversary.weight_at(step) for step in (0, 10, 20, 30, 500)] == [0.0, 0.0, 0.05, 0.1, 0.1]

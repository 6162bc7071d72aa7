import math

import pytest
import torch

from saga_ray.train.alignment import alignment_loss_sum


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count_P2 = torch.tensor([[3, 0], [5, 2], [1, 7]])
    attention_P2T = torch.rand(3, 2, 6, generator=generator, dtype=torch.float64).softmax(dim=-1) * count_P2[:, :, None]
    log_weights_P2T = torch.randn(3, 2, 6, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    return attention_P2T, count_P2, log_weights_P2T


def test_equals_the_sum_over_attribute_tokens_written_out() -> None:
    attention_P2T, count_P2, log_weights_P2T = _case()
    expected = 0.0
    for pair in range(3):
        for image in range(2):
            count = int(count_P2[pair, image])
            for _ in range(count):  # every attribute token of an image has the same teacher, their mean
                for patch in range(6):
                    teacher = float(attention_P2T[pair, image, patch]) / count
                    expected += teacher * (math.log(teacher) - float(log_weights_P2T[pair, image, patch]))
    total, count = alignment_loss_sum(attention_P2T, count_P2, log_weights_P2T)
    assert total.item() == pytest.approx(expected) and count.item() == 18


def test_is_zero_where_the_pooler_looks_where_the_teacher_looks() -> None:
    attention_P2T, count_P2, _ = _case()
    student_P2T = (attention_P2T / count_P2.clamp_min(1)[:, :, None]).clamp_min(1e-30).log()
    total, _ = alignment_loss_sum(attention_P2T, count_P2, student_P2T)
    assert abs(total.item()) < 1e-12


def test_splitting_the_pairs_changes_nothing() -> None:
    case = _case()
    whole, count = alignment_loss_sum(*case)
    parts = [alignment_loss_sum(*(tensor[rows] for tensor in case)) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    assert sum(part[1] for part in parts) == count


def test_patches_that_the_teacher_never_looks_at_give_no_nan() -> None:
    attention_P2T = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    log_weights_P2T = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log().requires_grad_()
    total, count = alignment_loss_sum(attention_P2T, torch.tensor([[2, 0]]), log_weights_P2T)
    total.backward()
    assert total.item() == pytest.approx(2 * math.log(2)) and count.item() == 2
    assert log_weights_P2T.grad.tolist() == [[[-2.0, 0.0], [0.0, 0.0]]]

import numpy as np
import pytest
from vendi_score.vendi import score_K

from bench.errors import UsageError
from bench.scoring.alignment import cosines, hessel, image_cosines, percent
from bench.scoring.diversity import diversity, vendi


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_cosines_are_means_over_the_seeds_of_a_prompt() -> None:
    images, texts = unit(6, 8, 0), unit(3, 8, 1)
    oracle = [np.mean([images[2 * p + s] @ texts[p] for s in range(2)]) for p in range(3)]
    np.testing.assert_allclose(cosines(images, texts), oracle, rtol=1e-5)


def test_negative_cosines_are_kept() -> None:
    images = unit(2, 8, 0)
    np.testing.assert_allclose(cosines(images, -images), -1, rtol=1e-6)


def test_cosines_do_not_depend_on_the_other_prompts() -> None:
    images, texts = unit(6, 8, 0), unit(3, 8, 1)
    alone = [cosines(images[2 * p : 2 * p + 2], texts[p : p + 1])[0] for p in range(3)]
    np.testing.assert_allclose(cosines(images, texts), alone, rtol=1e-6)


def test_published_scales_cut_images_off_before_averaging() -> None:
    """torchmetrics' CLIPScore: 100·cos of each image, and max(mean, 0) in the end."""
    raw = image_cosines(unit(64, 8, 0), unit(16, 8, 1))
    assert raw.shape == (16, 4) and (raw < 0).any()
    by_torchmetrics = max(float((100 * raw).mean()), 0.0)
    assert percent(raw).mean() == pytest.approx(by_torchmetrics)
    ours = [2.5 * max(cosine, 0) for cosine in raw.ravel()]
    np.testing.assert_allclose(hessel(raw).ravel(), ours)
    assert hessel(raw).mean() > 2.5 / 100 * by_torchmetrics
    positive = np.abs(raw)
    assert hessel(positive).mean() == pytest.approx(2.5 / 100 * percent(positive).mean())


def test_equal_images_are_one_image() -> None:
    images = np.repeat(unit(2, 8, 0), 4, axis=0)
    np.testing.assert_allclose(diversity(images, 4), 0, atol=1e-6)
    np.testing.assert_allclose(vendi(images, 4), 1, atol=1e-5)


def test_orthogonal_images_are_as_many_as_there_are() -> None:
    images = np.eye(8, dtype=np.float32)
    np.testing.assert_allclose(diversity(images, 4), 1)
    np.testing.assert_allclose(vendi(images, 4), 4)


# It reads scipy.sparse.csr, a name that SciPy has deprecated.
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
def test_vendi_is_that_of_its_authors() -> None:
    images = unit(15, 8, 0)
    oracle = [score_K(kernel @ kernel.T) for kernel in images.astype(float).reshape(3, 5, 8)]
    np.testing.assert_allclose(vendi(images, 5), oracle, rtol=1e-6)


def test_diversity_is_the_mean_over_pairs() -> None:
    images = unit(3, 8, 0)
    pairs = [1 - images[i] @ images[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(diversity(images, 3), [np.mean(pairs)], rtol=1e-5)


def test_the_order_of_seeds_does_not_matter() -> None:
    images = unit(12, 8, 0).reshape(3, 4, 8)
    shuffled = images[:, [2, 0, 3, 1]]
    for measure in (diversity, vendi):
        np.testing.assert_allclose(
            measure(images.reshape(12, 8), 4), measure(shuffled.reshape(12, 8), 4), rtol=1e-6
        )


@pytest.mark.parametrize("measure", [diversity, vendi])
def test_one_seed_has_no_diversity(measure: object) -> None:
    with pytest.raises(UsageError, match="at least 2 seeds a prompt, got 1"):
        measure(unit(3, 8, 0), 1)  # type: ignore[operator]

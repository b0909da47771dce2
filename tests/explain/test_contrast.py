import numpy as np
from scipy import sparse

from nlrewrite.explain import contrast
from nlrewrite.seeds import generator


def test_nearest_directions_are_those_of_the_largest_cosine() -> None:
    dec = generator(0, "dec").standard_normal((700, 5))
    dec[3] = 0
    found = contrast.by_directions(dec, 4)
    unit = dec / np.maximum(np.linalg.norm(dec, axis=1), 1e-12)[:, None]
    for latent in (0, 511, 512, 699):
        cosine = unit @ unit[latent]
        cosine[[latent, 3]] = -9
        assert found[latent].tolist() == np.argsort(-cosine)[:4].tolist()
    assert found[3].tolist() == [-1] * 4
    assert not (found == 3).any()
    assert not (found == np.arange(700)[:, None]).any()


def test_length_does_not_matter_and_the_opposite_direction_is_no_rival() -> None:
    dec = np.array([[1.0, 0], [100, 1], [-1, 0], [0, 1]])
    assert contrast.by_directions(dec, 3)[0].tolist() == [1, 3, 2]


def test_errors_rank_those_that_are_active_where_it_was_wrongly_said() -> None:
    said = np.zeros((6, 3))
    said[:, 0] = 1
    active = np.zeros((6, 3))
    active[0, 0] = 1  # right: what is active there too is no evidence
    active[0, 2] = 1
    active[1:4, 1] = 1
    active[4, 2] = 1
    found = contrast.by_errors(sparse.csr_matrix(said), sparse.csr_matrix(active), 2)
    assert found.tolist() == [[1, 2], [-1, -1], [-1, -1]]


def test_more_rivals_than_latents_are_filled_up_with_none() -> None:
    assert contrast.by_directions(np.eye(2), 4).tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]


def test_the_same_words_are_the_same_sentence() -> None:
    sentences = ["Active on of.", "", "active  on\nof.", "Active on in.", ""]
    assert contrast.by_sentences(sentences) == [[2], [], [0], [], []]


def test_rivals_take_turns_and_stand_once() -> None:
    merged = contrast.rivals(3, [[5, 6, 7], []], np.array([[6, 8, -1], [-1, -1, -1]]))
    assert merged == [[5, 6, 8], []]

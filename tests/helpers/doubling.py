"""A small exercise, and what is said of a wrong answer to it."""

from minilora.course.exercises import Exercise, Wrong

TASK = Exercise(
    "99-double",
    "Twice",
    lambda rng: (rng.normal(size=3),),
    lambda x: 2 * x,
    [Wrong("thrice", lambda x: 3 * x, "twice, not thrice")],
)


def one_line(verdict, mistake=None):
    assert verdict.state == "wrong"
    assert "\n" not in verdict.message and len(verdict.message) < 600
    assert mistake is None or verdict.mistake == mistake
    return verdict.message


def raising(error):
    def answer(x):
        raise error

    return answer

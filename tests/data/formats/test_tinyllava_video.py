from tests.data.formats.shown import Shown, opened, shown


def test_rows_of_tinyllava_video(folder):
    problem = "Which way?\nOptions:\nA. left.\nB. right."
    row = {"problem": problem, "solution": "<answer>B</answer>", "video_filename": "./videos/a.mp4"}
    data = opened(folder, row)
    assert data.format == "tinyllava_video"
    assert shown(data) == [Shown(f"<video>{problem}", [], ["a.mp4"], "B", "choice")]

from minirlhf.report import tables


def test_an_interval_as_text():
    row = {
        "accuracy": 0.76249,
        "accuracy_low": 0.73,
        "accuracy_high": 0.7914,
        "gap": -0.1,
    }
    assert tables.interval(row) == "0.762 [0.730, 0.791]"
    assert tables.interval(row, "gap") == "-0.100"
    assert tables.interval(row, "balanced_accuracy") == "–"
    assert tables.interval({"accuracy": None}) == "–"


def test_a_table_has_one_line_for_each_list_of_cells():
    text = tables.table(["name", "accuracy"], [["a", 0.5], ("b|c", "–")])
    assert text == "| name | accuracy |\n|---|---|\n| a | 0.5 |\n| b\\|c | – |\n"

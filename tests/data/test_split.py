"""A set falls into one part per value of an attribute."""

import pytest

from expunge.data.example import Example
from expunge.data.split import rows_by_attribute
from expunge.errors import ExpungeError

A, B, C = (Example(None, text, attributes={"group": group}) for text, group in (("a", "x"), ("b", "y"), ("c", "x")))


def test_each_value_gets_its_examples_in_order():
    parts = rows_by_attribute([B, A, C], "group")
    assert parts == {"y": (0,), "x": (1, 2)}
    assert list(parts) == ["y", "x"]


def test_missing_attributes_are_counted_and_the_first_row_named():
    bare = Example(None, "d")
    message = r"2 of 4 examples have no attribute 'group', .* example 2; they have group.*--columns attributes\.group COLUMN"
    with pytest.raises(ExpungeError, match=message):
        rows_by_attribute([A, bare, C, bare], "group")


def test_a_misspelt_attribute_is_recognized():
    with pytest.raises(ExpungeError, match=r"3 of 3 .* 'gruop' \(did you mean 'group'\?\)"):
        rows_by_attribute([A, B, C], "gruop")

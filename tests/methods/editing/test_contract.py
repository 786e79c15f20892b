"""Every editing method keeps the contract: one loop over the closed list."""

import pytest
import torch

from expunge.methods.editing import MERGING, EditingMethod
from expunge.methods.editing.base import Angle, Piece

from .conftest import whole_piece

METHODS = MERGING


def inputs(cls: type[EditingMethod]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(100, generator=generator)
    return base, [base + 0.1 * torch.randn(100, generator=generator) for _ in range(1 if cls.measures_angle else 3)]


def piece_of(method: EditingMethod) -> Piece:
    base, models = inputs(type(method))
    piece = whole_piece(method, base, models)
    if not method.measures_angle:
        return piece
    a, b = base.double(), models[0].double()
    return piece._replace(angle=Angle(float(a @ a), float(b @ b), float(a @ b)))


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.method_name())
class TestEveryEditingMethod:
    def test_the_spec_survives_json_and_knows_its_paper(self, cls: type[EditingMethod]) -> None:
        method = cls()
        assert cls.model_validate_json(method.model_dump_json()) == method
        assert method.family == "editing"
        assert all((cls.paper, cls.formula, cls.cost, cls.__doc__))
        assert all(info.description for name, info in cls.model_fields.items() if name != "name")

    def test_the_result_is_finite_float32_and_the_base_is_left_alone(self, cls: type[EditingMethod]) -> None:
        piece = piece_of(cls())
        before = piece.base_E.clone()
        edited = cls().edit(piece)
        assert edited.values_E.dtype == torch.float32
        assert torch.isfinite(edited.values_E).all()
        assert torch.equal(piece.base_E, before)
        assert not torch.equal(edited.values_E, before)

    def test_the_cut_between_pieces_changes_nothing(self, cls: type[EditingMethod]) -> None:
        whole = cls().edit(piece_of(cls()))
        parts = []
        for start, stop in ((0, 33), (33, 34), (34, 100)):
            piece = piece_of(cls())
            part = piece._replace(
                start=start, base_E=piece.base_E[start:stop], inputs=tuple(d[start:stop].clone() for d in piece.inputs)
            )
            parts.append(cls().edit(part))
        assert torch.equal(torch.cat([p.values_E for p in parts]), whole.values_E)
        if whole.kept:
            assert whole.kept == tuple(sum(k) for k in zip(*(p.kept for p in parts), strict=True))
        assert whole.outvoted == sum(p.outvoted for p in parts)

    def test_fields_of_nobody_are_refused(self, cls: type[EditingMethod]) -> None:
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            cls.model_validate({"name": cls.method_name(), "nothing": 1})


def test_names_are_unique() -> None:
    assert len({cls.method_name() for cls in METHODS}) == len(METHODS) == 7

"""A kind of contract that import-linter does not have: a package that needs nothing but a few others.

`make lint` reads the contracts in pyproject.toml; docs/decisions/0019-import-contracts.md says why they are so.
"""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter.application import output
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck
from importlinter.domain.imports import Module


class NeedsOnly(Contract):
    """`source_module` and what is below it import the standard library, each other and `allowed_modules`."""

    type_name = "needs_only"
    source_module = fields.ModuleField()
    allowed_modules = fields.SetField(subfield=fields.ModuleField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Every import that is none of these, also where it stands in a function."""
        source: Module = self.source_module  # type: ignore[assignment]
        allowed: set[Module] = {source, *self.allowed_modules}  # type: ignore[misc]
        found = sorted(
            (importer, imported)
            for importer in {source.name, *graph.find_descendants(source.name)}
            for imported in map(Module, graph.find_modules_directly_imported_by(importer))
            if imported.root_package_name not in sys.stdlib_module_names
            and not any(imported.is_in_package(package) for package in allowed)
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line an import."""
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} -> {imported}")

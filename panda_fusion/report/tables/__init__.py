"""The tables of a report, one module per theme."""

from __future__ import annotations

from dataclasses import replace

from panda_fusion.report.file_names import distinct
from panda_fusion.report.results import Results
from panda_fusion.report.table import Table
from panda_fusion.report.tables.ablation import AXES, axis_table
from panda_fusion.report.tables.cost import cost_table
from panda_fusion.report.tables.differences import differences_table
from panda_fusion.report.tables.sampling import sampling_tables
from panda_fusion.report.tables.similarity import correlation_table, nearest_table, type_table
from panda_fusion.report.tables.systems import systems_table
from panda_fusion.report.tables.transfer import transfer_table


def all_tables(results: Results) -> list[Table]:
    """Every table for which there are records, under names of their own."""
    made = [
        systems_table(results),
        *(transfer_table(results, method) for method in results.methods),
        differences_table(results),
        *(axis_table(results, axis) for axis in AXES),
        correlation_table(results),
        nearest_table(results),
        type_table(results),
        *sampling_tables(results),
        cost_table(results),
    ]
    tables = [table for table in made if table is not None]
    names = distinct(table.name for table in tables)
    return [replace(table, name=name) for table, name in zip(tables, names, strict=True)]

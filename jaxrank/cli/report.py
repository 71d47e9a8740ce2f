"""Tables that several commands print."""

from rich.table import Table

from jaxrank.manifest import Certificate


def certificate_table(certificate: Certificate) -> Table:
    """The certificate, a line for each output and number of candidates."""
    table = Table(
        title=f"Certificate: {certificate.stage} against TensorFlow, {certificate.requests} requests, "
        f"tolerance {certificate.tolerance:.0e}",
        title_justify="left",
    )
    for column in (
        "output",
        "candidates",
        "max abs error",
        "max rel error",
        "rank correlation",
        "top-10 overlap",
    ):
        table.add_column(column, justify="left" if column == "output" else "right")
    for o in certificate.outputs:
        table.add_row(
            o.output,
            str(o.rows),
            f"{o.max_abs_error:.1e}",
            f"{o.max_rel_error:.1e}",
            f"{o.spearman:.6f}",
            f"{o.top10_overlap:.0%}",
        )
    return table

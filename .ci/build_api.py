"""Build the API reference from the docstrings, as a folder of HTML files.

    pip install ".[all,docs]" && python .ci/build_api.py --out build/api

Ends with status 1 where a module cannot be imported or a docstring or annotation not be understood.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import sketchfusion_plugins

# Configs of mmengine are no modules, and the other one is run, not imported.
NO_MODULES = ("sketchfusion_plugins.task_configs", "sketchfusion_plugins.__main__")
# Named tuples and an mmcv decorator that pdoc shows well enough, and sources that lie beside the
# installed package, which is the one that is documented.
HARMLESS = ("Error parsing type annotation", "cannot create weak reference", "may refer to either")


def list_modules(name: str) -> Iterator[str]:
    """A module, and those below it that pdoc does not find by itself, because of ``__all__``."""
    yield name
    module = import_module(name)
    if hasattr(module, "__all__"):
        for child in iter_modules(getattr(module, "__path__", []), f"{name}."):
            if child.name not in NO_MODULES:
                yield from list_modules(child.name)


def main() -> None:
    """Write the pages and report what pdoc complains of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/api"))
    out = parser.parse_args().out
    # Names that the package imports when they are asked for are no attributes before.
    for name in sketchfusion_plugins.__all__:
        setattr(sketchfusion_plugins, name, getattr(sketchfusion_plugins, name))
    modules = [*list_modules("sketchfusion_plugins"), *list_modules("timm_adapters")]
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules, output_directory=out)
    home = Path(pdoc.__file__).parent
    messages = [str(found.message) for found in caught if home in Path(found.filename).parents]
    complaints = [text for text in messages if not any(known in text for known in HARMLESS)]
    for text in complaints:
        print(text, file=sys.stderr)
    print(f"The reference is {out / 'index.html'}.")
    raise SystemExit(1 if complaints else 0)


if __name__ == "__main__":
    main()

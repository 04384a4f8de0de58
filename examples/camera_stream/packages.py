"""Packages that only some programs need."""

EXTRAS = {"cv2": ("OpenCV", "viewer"), "h5py": ("h5py", "examples"), "tqdm": ("tqdm", "examples")}


def hint(missing: ModuleNotFoundError) -> str:
    """How to install what is missing."""
    package, extra = EXTRAS.get(missing.name or "", (missing.name, "examples"))
    return f'{package} is missing: pip install "rpc-kit[{extra}]"'

"""What lies beside the pixels of a frame: its display matrix, marks of Dolby Vision."""

from typing import Any

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame


def side_data_of(frame: VideoFrame, name: str) -> bytes | None:
    """Read one kind of side data, by FFmpeg's name for it; None where there is none.

    The property `side_data` of a frame refers to the frame, and this to that: such frames stay in
    memory until Python looks for cycles, which took 150 MB for each frame of 12K.

    Raises:
        ValueError: beside it lies a kind that PyAV has no name for.
    """
    container: Any = SideDataContainer  # its types do not tell that it takes a frame
    found = {each.type.name: each for each in container(frame)}.get(name)
    return None if found is None else bytes(found)

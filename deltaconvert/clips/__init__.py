"""Where frames come from: video files, pictures, and clips made on the spot.

`open_clip` turns what a user names into a `Clip`: an iterable of RGB frames that starts
anew each time it is iterated. PyAV decodes videos and pictures alike; it is imported when
a file is opened, so that neither the package nor a synthetic clip needs it.
"""

from __future__ import annotations

from deltaconvert.clips.clip import Clip
from deltaconvert.clips.pictures import natural_key
from deltaconvert.clips.sources import open_clip
from deltaconvert.clips.synthetic import synthetic

__all__ = ["Clip", "natural_key", "open_clip", "synthetic"]

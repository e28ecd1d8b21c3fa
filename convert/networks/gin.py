"""Make the Linen networks known to gin as ``convert.NatureDQN`` and ``convert.NatureC51``.

For gin files that bind them, such as the ``agent.gin`` of ``--to dopamine``. Needs gin, which Dopamine brings,
and not Dopamine itself.
"""

from __future__ import annotations

import gin

from convert.networks.linen import NatureC51, NatureDQN

gin.external_configurable(NatureDQN, module="convert")
gin.external_configurable(NatureC51, module="convert")

"""HTTP routes. On the administration listener: the node, governance, recovery; on the application listener: the
framework's own, and every adapter's."""

from coco.enclave.api.routes.administration import administration_app as administration_app
from coco.enclave.api.routes.application import application_app as application_app

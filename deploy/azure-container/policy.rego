package policy

# What the utility machine may run: this one image, with these arguments, and nothing else. Its SHA-256 is the host data of
# every report, so that a policy of Coco that names that hash names this file, byte for byte.

api_version := "0.10.0"

framework_version := "0.2.3"

containers := [{
	"id": "${image}",
	"layers": split("${layers}", ","),
	"command": [
		"/opt/coco/coco", "node", "join", "--dir", "${data}", "--peer", "${peer}", "--genesis", "${files}/genesis.json",
		"--service", "${files}/service.pem", "--listen", "${listen}", "--advertise", "${advertise}", "--application-port", "${application_port}",
		"--administration-port", "${administration_port}", "--peer-port", "${peer_port}", "--platform", "snp",
		"--endorsements", "azure-container", "--left-is-done", "--json",
	],
	"env_rules": [
		{"pattern": "PATH=.*", "strategy": "re2"},
		{"pattern": "UVM_SECURITY_CONTEXT_DIR=.*", "strategy": "re2"},
	],
	"working_dir": "/",
	"allow_stdio_access": true,
	"allow_elevated": false,
	"no_new_privileges": true,
	"exec_processes": [],
	"signals": [15],
}]

default create_container := false

create_container {
	some container in containers
	container.command == input.argList
	container.layers == input.layers
	container.working_dir == input.workingDir
	every variable in input.envList {
		some rule in container.env_rules
		regex.match(concat("", ["^", rule.pattern, "$$"]), variable)
	}
	not input.privileged
	input.noNewPrivileges
}

# Nobody looks in: no process beside, no dump of stacks, no properties, no logging that the policy does not name.

default exec_in_container := false

default exec_external := false

default dump_stacks := false

default get_properties := false

default runtime_logging := false

default load_fragment := false

default mount_device := false

mount_device {
	some container in containers
	some layer in container.layers
	layer == input.deviceHash
}

default mount_overlay := false

mount_overlay {
	some container in containers
	container.layers == input.layers
}

signal_container_process {
	some container in containers
	some allowed in container.signals
	allowed == input.signal
}

shutdown_container := true

unmount_device := true

unmount_overlay := true

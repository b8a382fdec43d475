{{/* Labels of every object. `countersign uninstall` finds them by part-of. Argument: a component's name. */}}
{{- define "countersign.labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: countersign
{{- end }}

{{/* The restricted Pod Security profile, and more: nothing is written but to the volumes that are named. */}}
{{- define "countersign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "countersign.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where our own pods run. Arguments: name, values. */}}
{{- define "countersign.scheduling" -}}
{{- with .values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.scheduling.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .values.scheduling.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
# One node's end should not take all replicas. Not a demand: a cluster may have one node only.
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {app.kubernetes.io/name: {{ .name }}}}
{{- end }}

{{/* Probes on the health port. Argument: its number. */}}
{{- define "countersign.probes" -}}
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 10
  failureThreshold: 3
{{- end }}

{{/* What both entries of the mutating webhook have in common. */}}
{{- define "countersign.mutate" -}}
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
clientConfig:
  service: {name: countersign-injector, namespace: {{ .Release.Namespace }}, path: /mutate, port: 443}
admissionReviewVersions: [v1]
sideEffects: None
# No pod that is labelled in starts without its sidecar.
failurePolicy: Fail
matchPolicy: Equivalent
# Containers that a later webhook adds have probes too.
reinvocationPolicy: IfNeeded
timeoutSeconds: {{ .Values.webhooks.timeoutSeconds }}
{{- end }}
